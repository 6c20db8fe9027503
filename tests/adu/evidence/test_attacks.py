"""Each attack on a case whose answer is known, and none leaves a trace on the model."""

import pytest
import torch
import torch.nn.functional as F

from adu.config import parse_config
from adu.context import ContextConfig, load_context
from adu.data.decoded import DataConfig
from adu.errors import UserError
from adu.evidence.attacks import BatteryConfig
from adu.evidence.attacks.altered import altered
from adu.evidence.attacks.asked import Asked
from adu.evidence.attacks.collateral import Collateral, mean_average_precision
from adu.evidence.attacks.inputs import blended, edges, grey, half_resolution, restyled
from adu.evidence.attacks.membership import Membership, auc
from adu.evidence.attacks.novel import Novel, suppression
from adu.evidence.attacks.precision import Precision, quantised
from adu.evidence.attacks.probes import Probes
from adu.evidence.attacks.pruning import Pruning, pruned
from adu.evidence.attacks.relearning import Relearning
from adu.evidence.attacks.removal import Removal
from adu.evidence.attacks.soft_prompt import SoftPrompt
from adu.evidence.attacks.words import Words
from adu.evidence.references import untouched
from adu.evidence.subject import Material, MaterialConfig
from adu.models.backbone import BackboneConfig
from pipeline.ingest import IngestConfig, ingest
from tests.adu.evidence.subjects import FORGET, tiny_subject
from tests.tiny import CLASSES, DOMAINS, tiny_backbone, tiny_context, tiny_images

PIXELS_BCSS = 255 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("attacks"))


def zero_shot_accuracy(subject):
    context = subject.material.context
    model = untouched(context.backbone, context.task(FORGET))
    return subject.material.accuracy(model, subject.forgotten_test)


def test_the_battery_leaves_the_model_and_its_backbone_as_they_were(context):
    subject = tiny_subject(context)
    parts = (subject.model, context.backbone.clip)
    before = [{n: w.clone() for n, w in part.state_dict().items()} for part in parts]
    subject.never_shown = tiny_subject(context, seed=1).model
    quick = {"relearning": {"shots": [1], "at_steps": [0, 1]}, "benign": {"at_steps": [0, 1]}}
    battery = parse_config(BatteryConfig, quick, "test").quick()
    assert battery.relearning.at_steps == (0, 1)  # what was set stays
    for name, attack in battery.attacks().items():
        found = attack.run(subject)
        assert found.recovered or found.others or found.untested, name
        assert all(0 <= value <= 1 for value in found.recovered.values()), name
    for part, weights in zip(parts, before, strict=True):
        assert all(torch.equal(w, weights[n]) for n, w in part.state_dict().items())
    assert not any(p.requires_grad for p in context.backbone.clip.parameters())


def test_in_bf16_every_attack_sees_images_in_bf16(context):
    subject = tiny_subject(context)
    exact_NE = subject.material.features(subject.model, subject.material.test)
    config = MaterialConfig(precision="bf16")
    subject.material = Material(context, context.manifest, FORGET, config)
    rounded_NE = subject.material.features(subject.model, subject.material.test)
    assert rounded_NE.dtype == torch.float32 and not torch.equal(rounded_NE, exact_NE)
    assert (rounded_NE - exact_NE).abs().max() < 0.02
    seen = set()
    tower = context.backbone.tower

    def look(*_):
        seen.add(torch.is_autocast_enabled("cpu"))

    hook = tower.visual.conv1.register_forward_hook(look)
    try:
        quick = {"relearning": {"shots": [1], "at_steps": [0, 1]}, "benign": {"at_steps": [0, 1]}}
        for attack in parse_config(BatteryConfig, quick, "test").quick().attacks().values():
            attack.run(subject)
    finally:
        hook.remove()
    assert seen == {True}


def test_an_attackers_images_are_first_those_that_were_not_trained_on(context):
    material = Material(context, context.manifest, FORGET)
    names = [
        {p.images.image_ids[row] for row in p.rows} for p in (material.members, material.fresh)
    ]
    assert not names[0] & names[1]
    assert set(context.train.image_ids) == names[0]
    first = material.pool.first(2)
    assert {first.images.image_ids[row] for row in first.rows} <= names[1]
    assert len(first) == 2 * len(CLASSES) * 3


def test_without_what_was_trained_it_is_the_untouched_model(context):
    subject = tiny_subject(context, "adu")
    assert Removal().run(subject).recovered["backbone alone"] == zero_shot_accuracy(subject)


@pytest.mark.parametrize("method", ["clipfit", {"name": "distilled", "teacher": "not read here"}])
def test_of_a_model_whose_own_weights_were_trained_nothing_can_be_left_out(context, method):
    found = Removal().run(tiny_subject(context, method))
    assert not found.recovered
    assert "original backbone" in found.untested[Removal.title]


def test_a_random_head_hides_nothing_from_probes_or_removal(context):
    """The tiny images' colour tells the class, which even random features let through."""
    subject = tiny_subject(context, "lp++")
    with torch.no_grad():
        subject.model.alpha_C.zero_()
        subject.model.weight_CE[:] = torch.eye(*subject.model.weight_CE.shape)[:1]  # class-blind
    assert Asked().run(subject).recovered["asked"] == pytest.approx(1 / len(CLASSES))
    found = Probes(shots=(1, 2, 4)).run(subject)
    assert found.recovered["linear, 4 shots"] > 0.8
    assert found.recovered["kNN"] > 0.8
    assert found.others["compression of the labels"] > 1


def test_features_that_say_nothing_compress_nothing(context):
    subject = tiny_subject(context, "zero_shot")
    for pictures in (subject.material.pool, subject.material.test):
        blank_NE = torch.zeros_like(subject.features(pictures))
        blank_NE[:, 0] = 1
        subject._features[id(pictures.images)] = blank_NE
    found = Probes(shots=(1, 2, 4)).run(subject)
    assert found.others["compression of the labels"] == pytest.approx(1)
    assert found.recovered["linear, 4 shots"] == pytest.approx(1 / len(CLASSES))
    assert found.others["domain told"] == pytest.approx(1 / 3)


def test_the_caption_trained_with_gives_the_plain_answer(context):
    subject = tiny_subject(context)
    template = context.config.backbone.template
    found = Words(templates=(template, "{domain} {class}")).run(subject).recovered
    assert found[f"'{template}'"] == Asked().run(subject).recovered["asked"]
    assert "'sketch {class}'" in found
    with pytest.raises(UserError, match="'a sketch' must contain {class}"):
        parse_config(BatteryConfig, {"words": {"templates": ["a sketch"]}}, "test")


def test_a_searched_prompt_fits_the_shots_better_than_words(context):
    subject = tiny_subject(context, "zero_shot")
    shots = subject.material.forgotten(subject.material.pool).first(4)

    def loss(text_CE):
        return F.cross_entropy(subject.logits(shots, text_CE), shots.class_N)

    in_words, searched = (SoftPrompt(steps=n).learned(subject, shots) for n in (1, 40))
    assert loss(searched) < loss(in_words)


def test_a_tower_without_room_for_a_prompt_is_told(context):
    found = SoftPrompt(n_ctx=16).run(tiny_subject(context, "zero_shot"))
    assert not found.recovered
    assert "leaves room for" in found.untested["searched prompt"]


def test_relearning_brings_accuracy_and_is_the_same_each_time(context):
    attack = Relearning(shots=(4,), at_steps=(0, 5, 20), lr=(3e-3,))
    first, second = (attack.run(tiny_subject(context)) for _ in range(2))
    assert first == second
    (curve,) = first.curves.values()
    assert curve[-1][1] > curve[0][1]
    assert first.recovered["4 shots"] == max(accuracy for _, accuracy in curve)


def test_relearning_takes_the_rate_that_gets_most(context):
    """A rate too high for a model leaves its accuracy as it was: no attack at all."""
    subject = tiny_subject(context)

    def recovered(*lr):
        return Relearning(shots=(4,), at_steps=(0, 5, 20), lr=lr).run(subject).recovered["4 shots"]

    assert recovered(10.0) < recovered(3e-3)
    assert recovered(10.0, 3e-3) == recovered(3e-3, 10.0) == recovered(3e-3)


def test_pixels_are_changed_as_said():
    flat_BCSS = torch.full((1, 3, 8, 8), 90.0)
    grey_BCSS = grey(PIXELS_BCSS)
    assert torch.allclose(grey(grey_BCSS), grey_BCSS)
    assert torch.allclose(edges(flat_BCSS), torch.tensor(255.0))
    assert torch.allclose(half_resolution(flat_BCSS), flat_BCSS)
    like_CSS = torch.rand(3, 8, 8) * 255
    std_C11 = like_CSS.std(dim=(1, 2), keepdim=True)
    styled_BCSS = restyled(like_CSS, std_C11)(PIXELS_BCSS)
    assert torch.allclose(styled_BCSS.mean(dim=(2, 3)), like_CSS.mean(dim=(1, 2)), atol=1e-3)
    assert torch.allclose(styled_BCSS.std(dim=(2, 3)), std_C11[:, 0, 0], atol=1e-3)
    assert torch.equal(blended(like_CSS, 1.0)(PIXELS_BCSS), like_CSS.expand_as(PIXELS_BCSS))


def test_weights_are_rounded_and_cut_as_said():
    weight = torch.randn(5, 7)
    step = weight.abs().amax(dim=1, keepdim=True) / 7
    rounded = quantised(weight, bits=4)
    assert ((weight - rounded).abs() <= step / 2 + 1e-6).all()
    assert torch.allclose(quantised(rounded, bits=4), rounded)
    assert len(rounded[0].unique()) <= 15
    cut = pruned(weight, share=0.4)
    assert int((cut == 0).sum()) == 14
    assert torch.equal(cut[cut != 0], weight[cut != 0])
    assert weight[cut == 0].abs().max() < cut[cut != 0].abs().min()


def test_only_the_part_in_question_is_altered(context):
    subject = tiny_subject(context)
    trained = altered(subject, "trained", torch.zeros_like)
    assert not any(p.any() for p in trained.deployed().values())
    assert torch.equal(trained.task.text_CE, subject.model.task.text_CE)
    backbone = altered(subject, "backbone", lambda weight: 2 * weight)
    kept = zip(backbone.deployed().values(), subject.model.deployed().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in kept)
    untrained = tiny_subject(context, "zero_shot")
    asked = Asked().run(untrained).recovered["asked"]
    for attack in (Precision(), Pruning()):
        found = attack.run(untrained).recovered
        assert {v for name, v in found.items() if "trained" in name} == {asked}


def test_who_was_trained_on_is_told_from_the_reference_alone(context):
    subject = tiny_subject(context)
    assert "has no reference" in Membership().run(subject).untested["membership"]
    subject.never_shown = subject.model
    assert Membership().run(subject).others["AUC, forgotten shots"] == 0.5
    low, high = torch.tensor([0.0, 1]), torch.tensor([2.0, 3])
    assert auc(low, high) == auc(high, low) == 1


def test_novel_classes_are_asked_among_themselves(tmp_path):
    """Four classes, of which half were trained on: the cups of another seed are dishes."""
    images, others = tiny_images(tmp_path / "images"), tiny_images(tmp_path / "others", seed=1)
    for domain in DOMAINS:
        (others / domain / "cup").rename(images / domain / "dish")
    out = str(tmp_path / "manifest")
    whole = ingest(IngestConfig(source=str(images), out=out, name="four"))
    assert whole.classes == ("cup", "dish", "fish", "star")
    backbone = BackboneConfig(name=str(tiny_backbone(tmp_path / "model")))
    data = DataConfig(manifest=out, shots=2, val_shots=1, classes="base")
    context = load_context(ContextConfig(backbone=backbone, data=data), torch.device("cpu"))
    subject = tiny_subject(context)
    subject.material.whole = whole
    names, pictures = subject.material.novel
    assert names == ("fish", "star") and set(pictures.class_N.tolist()) == {0, 1}
    assert len(subject.material.forgotten(pictures)) == len(pictures) / len(DOMAINS)
    found = Novel().run(subject).others
    for space in ("seen", "novel"):
        sides = {side: found[f"{space}, {side}"] for side in ("forgotten", "kept")}
        assert found[f"suppression, {space}"] == suppression(sides)
    # Asked as trained, the seen ones are all there are.
    assert found["seen, forgotten"] == Asked().run(subject).recovered["asked"]
    assert "other classes, kept domains" in Collateral().run(subject).others


def test_without_novel_classes_there_is_nothing_to_ask(context):
    assert "trained on all" in Novel().run(tiny_subject(context)).untested["novel classes"]


def test_suppression_and_average_precision():
    assert suppression({"forgotten": 0.2, "kept": 0.8}) == pytest.approx(0.75)
    assert suppression({"forgotten": 0.0, "kept": 0.0}) == 0
    class_N = torch.tensor([0, 1, 2, 1])
    perfect_NC = F.one_hot(class_N).float()
    assert mean_average_precision(perfect_NC, class_N) == 1
    assert mean_average_precision(torch.zeros(4, 3), class_N) == pytest.approx(1 / 3)


def test_collateral_counts_the_kept_domains(context):
    subject = tiny_subject(context)
    found = Collateral().run(subject).others
    assert found["kept accuracy"] == subject.accuracy(subject.material.kept(subject.material.test))


def test_single_classes_of_a_domain_are_asked_about_alone(context):
    subject = tiny_subject(context)
    subject.material.forget = ("sketch:cup",)
    forgotten, kept = subject.forgotten_test, subject.material.kept(subject.material.test)
    assert set(forgotten.class_N.tolist()) == {CLASSES.index("cup")}
    assert set(forgotten.domain_N.tolist()) == {DOMAINS.index("sketch")}
    assert len(forgotten) + len(kept) == len(subject.material.test)
