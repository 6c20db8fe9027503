"""Models of each kind work whole: tokenizer, preparation of images, logit bias, text context.

The models are reduced, their weights random, and their tokenizers made here: nothing is fetched.
"""

import json
from dataclasses import dataclass

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.eva import eva02_tiny_patch14_224, vit_pe_core_tiny_patch16_384
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, RobertaConfig

from adu import storage
from adu.context import ContextConfig, load_context
from adu.data.decoded import DataConfig, ImageSet, eval_batch
from adu.errors import UserError
from adu.evaluation.evaluate import evaluate_test
from adu.methods import Task, build_method
from adu.methods.clipfit import ClipFitConfig
from adu.methods.zero_shot import ZeroShotConfig
from adu.models import sources
from adu.models.backbone import BackboneConfig
from adu.models.folder import save_folder
from adu.models.openclip import forward_flops, image_side, load_backbone
from adu.models.sources import CONFIG_FILE, WEIGHTS_FILE, needs_transformers
from adu.models.text import TextContext
from adu.training.checkpoint import checkpoint_bytes, load_checkpoint
from adu.training.config import RunConfig
from adu.training.trainer import Trainer
from pipeline.search import main as search
from tests.adu.data.test_preprocess import lines
from tests.tiny import CLASSES, tiny_manifest

# Captions of the tests; "." is what CLIPA keeps of them.
WORDS = (".", "cup", "fish", "star", "a", "photo", "of", "sketch")
CPU = torch.device("cpu")


@register_model
def reduced_pe(**options):
    """timm's Perception Encoder with a few blocks."""
    smaller = {"img_size": 64, "depth": 3, "embed_dim": 48, "ref_feat_shape": (4, 4)}
    return vit_pe_core_tiny_patch16_384(**options | smaller)


@register_model
def reduced_eva02(**options):
    """timm's EVA02 with a few blocks."""
    smaller = {"img_size": 64, "patch_size": 16, "depth": 3, "embed_dim": 48, "num_heads": 3}
    return eva02_tiny_patch14_224(**options | smaller)


# open_clip's own, and timm's smallest.
OWN_VIT = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TINY_VIT = {"image_size": 160, "timm_model_name": "test_vit"}
# As open_clip's own configurations of these families have it, but for the sizes.
SIGLIP_TEXT = {
    "context_length": 16,
    "vocab_size": 32,
    "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "width": 64,
    "heads": 2,
    "layers": 2,
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}
CLIP_TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
SQUASH = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
KINDS = {
    "SigLIP": {
        "vision": TINY_VIT | {"timm_pool": "map", "timm_proj": "none"},
        "text": SIGLIP_TEXT,
        "more": {"init_logit_bias": -10, "custom_text": True},
        "preprocess": SQUASH,
    },
    "SigLIP 2": {
        "vision": TINY_VIT | {"timm_pool": "map", "timm_proj": "none"},
        "text": SIGLIP_TEXT | {"act_kwargs": {"approximate": "tanh"}},
        "more": {"init_logit_bias": -10, "custom_text": True},
        "preprocess": SQUASH,
    },
    "CLIPA": {
        "vision": OWN_VIT | {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text": {
            "context_length": 16,
            "vocab_size": 32,
            "hf_tokenizer_name": "bert-base-uncased",
            "tokenizer_kwargs": {"strip_sep_token": True},
            "width": 64,
            "heads": 2,
            "layers": 2,
            "pool_type": "last",
            "no_causal_mask": True,
        },
        "more": {},
        "preprocess": {"resize_mode": "squash", "interpolation": "bilinear"},
    },
    "MetaCLIP 2": {
        "vision": OWN_VIT,
        "text": {
            "context_length": 16,
            "vocab_size": 32,
            "hf_tokenizer_name": "google/mt5-base",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "pool_type": "eos",
            "eos_id": 1,
            "width": 64,
            "heads": 2,
            "layers": 2,
        },
        "more": {},
        "preprocess": {},
    },
    "Perception Encoder": {
        "vision": {"image_size": 64, "timm_model_name": "reduced_pe", "timm_pool": "map"},
        "text": CLIP_TEXT,
        "more": {"custom_text": True},
        "preprocess": SQUASH | {"interpolation": "bilinear"},
    },
    "EVA02": {
        "vision": {"image_size": 64, "timm_model_name": "reduced_eva02", "timm_pool": "token"},
        "text": CLIP_TEXT,
        "more": {"custom_text": True},
        "preprocess": {},
    },
}


@dataclass(frozen=True)
class Marks:
    """What a family's tokenizer puts around words.

    Attributes:
        special: Its special tokens, by number.
        around: Where they stand: $A is the words.
        padding: What a caption is filled up with.
        room: Tokens of 16 that are left by "cup" and, if they are kept, "."
    """

    special: tuple[str, ...]
    around: str
    padding: str
    room: int = 14


# SigLIP pads with its end token; SigLIP 2 and MetaCLIP 2 have padding of its own; none has a start.
# CLIPA's are BERT's, with the end token taken away.
MARKS = {
    "SigLIP": Marks(("<unk>", "</s>"), "$A </s>", "</s>"),
    "SigLIP 2": Marks(("<pad>", "</s>", "<bos>", "<unk>"), "$A </s>", "<pad>"),
    "MetaCLIP 2": Marks(("<pad>", "</s>", "<unk>"), "$A </s>", "<pad>"),
    "CLIPA": Marks(("[PAD]", "<unk>", "[CLS]", "[SEP]"), "[CLS] $A [SEP]", "[PAD]", room=12),
    "RoBERTa": Marks(("<s>", "<pad>", "</s>", "<unk>"), "<s> $A </s>", "<pad>"),
}


def save_tokenizer(folder, kind):
    marks = MARKS[kind]
    vocabulary = {word: number for number, word in enumerate([*marks.special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=marks.around,
        special_tokens=[(m, vocabulary[m]) for m in marks.around.split() if m != "$A"],
    )
    separator = {"sep_token": "[SEP]"} if "[SEP]" in marks.special else {}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token=marks.padding, **separator
    ).save_pretrained(folder)


def whole_model(folder, kind):
    """Writes a reduced model of a family as a folder, with all that belongs to it."""
    parts = KINDS[kind]
    folder.mkdir()
    model = {"embed_dim": 64, "vision_cfg": parts["vision"], "text_cfg": parts["text"]}
    config = {
        "model_cfg": model | parts["more"],
        "preprocess_cfg": parts["preprocess"],
    }
    if "hf_tokenizer_name" in parts["text"]:
        save_tokenizer(folder, kind)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    # What starts at zero would hide a mistake.
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data += 0.02 * torch.randn_like(parameter)
    save_file(model.state_dict(), folder / WEIGHTS_FILE)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return whole_model(tmp_path_factory.mktemp("models") / "model", request.param)


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(BackboneConfig(name=str(folder)), CPU)


def test_it_classifies_as_open_clip_does(folder, backbone):
    """From a picture and words to a logit, beside open_clip's own loading and forward pass."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    prepare = open_clip.transform.image_transform_v2(
        PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False
    )
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    pictures = [lines(640, 320), lines(233, 411, seed=1)]
    text_CE = backbone.text_features(CLASSES, "a photo of a {class}.")
    method = build_method(
        ZeroShotConfig(), backbone, Task(CLASSES, ("photo", "sketch"), ("sketch",), text_CE)
    )
    images = ImageSet([np.array(picture) for picture in pictures], ["a", "b"], [0, 0], [0, 0])
    images_BCHW = eval_batch(images, [0, 1], backbone.transform)
    with torch.no_grad():
        expected_BCHW = torch.stack([prepare(picture) for picture in pictures])
        assert torch.equal(images_BCHW, expected_BCHW)
        tokens_CT = tokenize([f"a photo of a {name}." for name in CLASSES])
        torch.testing.assert_close(text_CE, model.encode_text(tokens_CT, normalize=True))
        output = model(expected_BCHW, tokens_CT)
        logits_BC = output[2] * output[0] @ output[1].T
        if model.logit_bias is not None:
            logits_BC = logits_BC + model.logit_bias
        torch.testing.assert_close(method(images_BCHW).logits_BC, logits_BC)


def test_context_of_real_words_gives_their_captions_features(backbone):
    context = TextContext(backbone, CLASSES, 4, init="a photo of a")
    expected_CE = backbone.text_features(CLASSES, "a photo of a {class}.")
    torch.testing.assert_close(context().detach(), expected_CE)


def test_context_leaves_the_end_token_its_place(backbone, request):
    # "fish" and an end token stay; CLIP's own tokenizer has a full stop and a start token, too.
    kind = request.node.callspec.params["folder"]
    room = MARKS[kind].room if kind in MARKS else 12
    TextContext(backbone, CLASSES, room)
    with pytest.raises(UserError, match=f"leaves room for {room} of 16"):
        TextContext(backbone, CLASSES, room + 1)


def test_a_run_on_it_trains_and_comes_back(folder, tmp_path):
    data = DataConfig(manifest=str(tiny_manifest(tmp_path)), shots=1, val_shots=1)
    config = ContextConfig(backbone=BackboneConfig(name=str(folder)), data=data)
    context = load_context(config, CPU)
    run = RunConfig.model_validate(
        {
            "forget": ["sketch"],
            "method": {"name": "adu", "n_ctx": 2, "depth": 2, "text_n_ctx": 2},
            "train": {"epochs": 1, "batch_size": 9},
        }
    )
    trainer = Trainer(run, context)
    (report,) = trainer.epochs()
    assert all(value == value for value in report.losses.values())
    (tmp_path / "checkpoint").write_bytes(checkpoint_bytes(trainer.model, run, context))
    model, _ = load_checkpoint(str(tmp_path / "checkpoint"), context)
    scores = [evaluate_test(each, context, ("sketch",)).scores for each in (model, trainer.model)]
    assert scores[0] == scores[1]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return whole_model(tmp_path_factory.mktemp("siglip") / "model", "SigLIP")


@pytest.mark.parametrize("kind", ["SigLIP", "SigLIP 2"])
def test_captions_end_and_are_padded_as_the_family_does_it(tmp_path, kind):
    backbone = load_backbone(BackboneConfig(name=str(whole_model(tmp_path / "model", kind))), CPU)
    # SigLIP's configurations take punctuation and capitals away.
    found = backbone.caption_tokens(("Cup",), "A photo, of a {class}.")[0].tolist()
    first = 2 if kind == "SigLIP" else 4
    words = [first + WORDS.index(word) for word in ("a", "photo", "of", "a", "cup")]
    assert found == [*words, 1, *[1 if kind == "SigLIP" else 0] * 10]


def test_a_folder_elsewhere_comes_with_its_tokenizer(siglip, tmp_path):
    url = f"memory://whole/{tmp_path.name}"
    for file in siglip.iterdir():
        storage.write_bytes(f"{url}/{file.name}", file.read_bytes())
    known, fetched = (load_backbone(BackboneConfig(name=str(n)), CPU) for n in (siglip, url))
    found_CE, expected_CE = (each.text_features(CLASSES, "{class}") for each in (fetched, known))
    assert torch.equal(found_CE, expected_CE)
    (tmp_path / "saved").mkdir()
    save_folder(url, tmp_path / "saved")
    saved = load_backbone(BackboneConfig(name=str(tmp_path / "saved")), CPU)
    assert torch.equal(saved.text_features(CLASSES, "{class}"), expected_CE)


def test_a_folder_without_its_tokenizer_is_one_line(siglip, tmp_path):
    (tmp_path / "model").mkdir()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (tmp_path / "model" / name).write_bytes((siglip / name).read_bytes())
    with pytest.raises(UserError, match=r"model': its tokenizer cannot be loaded: [^\n]+$"):
        load_backbone(BackboneConfig(name=str(tmp_path / "model")), CPU)


def test_a_tower_of_another_size_than_the_folder_says_is_one_line(siglip, tmp_path):
    config = json.loads((siglip / CONFIG_FILE).read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 128
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    (tmp_path / WEIGHTS_FILE).write_bytes((siglip / WEIGHTS_FILE).read_bytes())
    with pytest.raises(UserError, match="image_size = 128: its image tower takes 160 x 160"):
        image_side(str(tmp_path))


@pytest.fixture
def without_transformers(monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda name: None)


def test_without_transformers_it_is_one_line(siglip, without_transformers):
    line = r"model': its tokenizer needs the package transformers, which is not installed \(pip"
    for load in (
        image_side,
        forward_flops,
        lambda name: load_backbone(BackboneConfig(name=name), CPU),
    ):
        with pytest.raises(UserError, match=line):
            load(str(siglip))


def test_a_dry_run_says_so_too(siglip, without_transformers, tmp_path, capsys):
    manifest = str(tiny_manifest(tmp_path))
    arguments = ["--manifest", manifest, "--backbone", str(siglip), "--dry-run"]
    shots = ["--shots", "2", "--context.data.val-shots", "1"]
    assert search([*arguments, *shots, "--output", str(tmp_path / "out")]) == 2
    assert "needs the package transformers" in capsys.readouterr().err


def test_what_needs_transformers_is_known_without_weights(siglip):
    assert needs_transformers(str(siglip))
    assert needs_transformers("ViT-B-16-SigLIP:webli")
    assert not needs_transformers("demo")
    assert not needs_transformers("ViT-B-16:openai")


def test_a_text_tower_of_hugging_face_scores_but_takes_no_context(tmp_path):
    """RoBERTa's, as in open_clip's roberta-ViT-B-32."""
    text = RobertaConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
    )
    text.save_pretrained(tmp_path / "text")
    kind = {
        "vision": TINY_VIT | {"timm_pool": "avg", "timm_proj": "linear"},
        "text": {
            "hf_model_name": str(tmp_path / "text"),
            "hf_tokenizer_name": "roberta-base",
            "hf_pooler_type": "mean_pooler",
            "context_length": 16,
        },
        "more": {},
        "preprocess": {},
    }
    KINDS["RoBERTa"] = kind
    try:
        folder = whole_model(tmp_path / "model", "RoBERTa")
    finally:
        del KINDS["RoBERTa"]
    backbone = load_backbone(BackboneConfig(name=str(folder)), CPU)
    text_CE = backbone.text_features(CLASSES, "a photo of a {class}.")
    assert torch.isfinite(text_CE).all()
    with pytest.raises(UserError, match="its text tower is a HFTextEncoder, which takes no learn"):
        TextContext(backbone, CLASSES, 2)
    task = Task(CLASSES, ("photo", "sketch"), ("sketch",), text_CE)
    with pytest.raises(UserError, match="has no biases in the feed-forward layers of an open_clip"):
        build_method(ClipFitConfig(), backbone, task)
