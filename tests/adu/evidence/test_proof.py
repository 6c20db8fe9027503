"""The whole battery on models whose past is known: they were trained from nothing.

In the kept domains colour tells the class, in the forgotten one the direction of stripes: who has
seen the first knows nothing of the second.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from adu.context import ContextConfig, load_context
from adu.data.decoded import DataConfig, eval_batch
from adu.evidence.attacks import BatteryConfig
from adu.evidence.attacks.relearning import Relearning
from adu.evidence.bench import Contestant, run_battery
from adu.evidence.distance import distance
from adu.evidence.references import knows_nothing, never_saw, untouched
from adu.evidence.subject import Material, MaterialConfig, Subject
from adu.evidence.verdict import standings, verdict
from adu.methods import build_method
from adu.models.backbone import BackboneConfig
from adu.models.sources import WEIGHTS_FILE
from pipeline.ingest import IngestConfig, ingest
from tests.adu.evidence.subjects import FORGET, tiny_run
from tests.tiny import CLASSES, DOMAINS, tiny_backbone

pytestmark = pytest.mark.faults  # a minute

SIZE, PERIOD = 32, 8
STEPS = 150
TEST_PER_CELL = 50


def draw(domain, class_, rng):
    across, down = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    along = (across, down, across + down)[class_] + rng.integers(PERIOD)
    pixels = rng.integers(0, 60, (SIZE, SIZE, 3))
    if domain in FORGET:
        pixels = pixels + 150 * (along % PERIOD < PERIOD // 2)[..., None]
    else:
        pixels[..., class_] += 120 + 60 * DOMAINS.index(domain)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proof")
    rng = np.random.default_rng(0)
    for domain in DOMAINS:
        for c, name in enumerate(CLASSES):
            cell = folder / "images" / domain / name
            cell.mkdir(parents=True)
            for i in range(2 * TEST_PER_CELL):
                draw(domain, c, rng).save(cell / f"{i}.png")
    out = str(folder / "manifest")
    ingest(IngestConfig(source=str(folder / "images"), out=out, name="stripes"))
    return out


def opened(folder, manifest, val_shots=1):
    backbone = BackboneConfig(name=str(folder))
    data = DataConfig(manifest=manifest, shots=8, val_shots=val_shots)
    return load_context(ContextConfig(backbone=backbone, data=data), torch.device("cpu"))


def pre_trained(folder, manifest, domains, seed):
    """Trains the image tower from random weights on some domains; writes the model."""
    context = opened(tiny_backbone(folder, seed=seed), manifest)
    clip, images = context.backbone.clip, Material(context, context.manifest, FORGET).pool.images
    numbers = [context.domains.index(domain) for domain in domains]
    rows = [i for i, d in enumerate(images.domain_N.tolist()) if d in numbers]
    optimizer = torch.optim.AdamW([p.requires_grad_() for p in clip.visual.parameters()], lr=2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        some = [rows[i] for i in torch.randperm(len(rows), generator=generator)[:32].tolist()]
        batch_BCHW = eval_batch(images, some, context.backbone.transform)
        features_BE = F.normalize(clip.encode_image(batch_BCHW), dim=-1)
        logits_BC = 14 * features_BE @ context.text_CE.T
        optimizer.zero_grad()
        F.cross_entropy(logits_BC, images.class_N[some]).backward()
        optimizer.step()
    save_file(clip.state_dict(), folder / WEIGHTS_FILE)
    return folder


@pytest.fixture(scope="module")
def models(manifest, tmp_path_factory):
    """A model pre-trained on all domains, and four that never saw one of them."""
    folder = tmp_path_factory.mktemp("models")
    kept = [domain for domain in DOMAINS if domain not in FORGET]
    whole = pre_trained(folder / "whole", manifest, DOMAINS, seed=0)
    return whole, [pre_trained(folder / f"kept-{n}", manifest, kept, n) for n in range(4)]


@pytest.fixture(scope="module")
def found(manifest, models, tmp_path_factory):
    """Standings of the untouched model, one that never saw the domain, and one of a random head."""
    whole, others = models
    context = opened(whole, manifest)
    many = MaterialConfig(test_per_cell=TEST_PER_CELL)
    task, material = context.task(FORGET), Material(context, context.manifest, FORGET, many)
    bare = tiny_run("zero_shot")
    head_run = tiny_run("lp++")
    head = build_method(head_run.method, context.backbone, task)
    with torch.no_grad():
        head.alpha_C.zero_()
        head.weight_CE.normal_(generator=torch.Generator().manual_seed(0))
    proved = {
        ("untouched", 0): (bare, untouched(context.backbone, task)),
        ("knows_nothing", 0): (bare, knows_nothing(context.backbone, task, seed=0)),
        ("reference", 0): (bare, never_saw(str(others[0]), context, task)),
        ("random_head", 0): (head_run, head),
    }
    for seed, other in enumerate(others[1:]):
        proved["never_saw", seed] = (bare, never_saw(str(other), context, task))
    contestants = [
        Contestant(*who, str(who), lambda w=who, r=run, m=model: Subject(*w, r, m, material))
        for who, (run, model) in proved.items()
    ]
    battery = BatteryConfig(relearning=Relearning(shots=(1, 4), at_steps=(0, 5, 20))).quick()
    attacks = battery.attacks()
    place = str(tmp_path_factory.mktemp("outcomes"))
    outcomes = [progress.outcome for progress in run_battery(contestants, attacks, place)]
    titles = {name: attack.title for name, attack in attacks.items()}
    found = standings(outcomes)
    said = {name: verdict(its, found["untouched"], titles) for name, its in found.items()}
    return found, said


def test_the_untouched_model_fails_the_whole_battery(found):
    standing, said = found[0]["untouched"], found[1]["untouched"]
    assert standing.distance.mean == 1
    assert all(its.mean == 1 for its in standing.by_attack.values())
    assert said.startswith("Not forgotten")


def test_a_reference_trained_without_the_domain_passes_it(found):
    standing, said = found[0]["reference"], found[1]["reference"]
    assert standing.kept.mean > 0.9
    assert said.startswith("Forgotten, as far as was tested")
    assert standing.distance.mean < 0.1


def test_a_random_head_does_not_look_forgotten(found):
    standing = found[0]["random_head"]
    assert standing.by_attack["asked"].mean < 0.5
    assert standing.by_attack["removal"].mean == 1
    assert standing.by_attack["probes"].mean > 0.8
    assert not found[1]["random_head"].startswith("Forgotten")


def test_what_a_search_may_follow_tells_them_apart_on_validation_images(manifest, models):
    whole, others = models
    context = opened(whole, manifest, val_shots="all")
    task, bare = context.task(FORGET), tiny_run("zero_shot")
    assert distance(untouched(context.backbone, task), bare, context) == 1
    never = [distance(never_saw(str(other), context, task), bare, context) for other in others]
    assert max(never) < 0.5, never
