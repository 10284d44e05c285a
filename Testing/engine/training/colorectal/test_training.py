"""Training on colorectal samples at toy size: the loop, the recipe, the ablations, and how tumours are counted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import small_bowel
from helpers.repository import REPOSITORY

from segmamba.cli.main import main
from segmamba.errors import InputError
from segmamba.models.manifest import IntensityNormalization, load_manifest
from segmamba.networks import build_network, parameter_count
from segmamba.networks.mamba import TriOrientedMamba
from segmamba.training import loop
from segmamba.training.colorectal.label_maps import bowel_arrays
from segmamba.training.colorectal.labels import LABELS
from segmamba.training.colorectal.samples import BowelBatch, BowelSynthesizer
from segmamba.training.colorectal.validation import evaluate_bowel, tumours_found
from segmamba.training.config import Config, read_config
from segmamba.training.sample_source import synthesizer_factory

CPU = torch.device("cpu")
RECIPE = REPOSITORY / "Resources" / "Training" / "segmamba-v2-colorectal.json"
SMALL = {"features": [4, 8, 8, 16], "depths": [1, 1, 1, 1], "full_features": 4}
LARGEST_BYTES = 40_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of the bowel, a case to evaluate, and a toy configuration made from the recipe."""
    folder = tmp_path_factory.mktemp("colorectal")
    for name in ("bowels", "held-out"):
        (folder / name).mkdir()
    arrays = bowel_arrays(small_bowel.tissues(), np.random.default_rng(0))
    np.savez_compressed(folder / "bowels" / "small_0.npz", **vars(arrays))
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[4:16, 4:16, 4:16], labels[8:12, 8:12, 8:12] = LABELS["colon"], LABELS["tumour"]
    np.savez(folder / "held-out" / "case.npz", image=100 * labels.astype(np.int16), labels=labels)
    content = json.loads(RECIPE.read_text(encoding="utf-8"))
    content["arguments"] |= SMALL
    content |= {
        "patch": [32, 32, 32],
        "spacing": 3.0,
        "batch": 1,
        "iterations": 2,
        "warmup": 1,
        "log_every": 1,
        "num_workers": 0,
    }
    (folder / "config.json").write_text(json.dumps(content | {"device": "cpu", "compile": False}), encoding="utf-8")
    return folder


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Config:
    return replace(read_config(folder / "config.json"), folder=str(tmp_path / "run"))


@pytest.mark.slow
def test_the_command_trains_and_logs_the_overlap_of_each_label(folder: Path) -> None:
    assert main(["train", str(folder / "config.json")]) == 0
    lines = (folder / "segmamba-v2" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    assert all(math.isfinite(entry["loss"]) for entry in log if "loss" in entry)
    assert set(log[-1]["evaluation"]["case"]) == {"dice_tumour", "dice_colon"}
    assert (folder / "segmamba-v2" / "weights.safetensors").is_file()


def test_repeating_one_sample_lowers_its_loss(config: Config) -> None:
    config = replace(config, warmup=0, learning_rate=5e-3, iterations=100)
    run = loop.Run(config, CPU)
    synthesizer = synthesizer_factory(config, CPU)(0)
    sample = synthesizer.batch(1)
    synthesizer.batch = lambda size: sample  # type: ignore[method-assign]
    losses = [float(loop.step(run, loop.make_gradients(run), synthesizer)) for _ in range(8)]
    assert losses[-1] < losses[0] - 0.15


def test_a_resumed_run_synthesizes_other_samples(config: Config) -> None:
    make = synthesizer_factory(config, CPU)
    first, again, later = (make(seed).batch(1) for seed in (0, 0, 7))
    assert isinstance(first, BowelBatch)
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, later.image)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.update(task="liver"), "task must be"),
        (lambda c: c["arguments"].update(out_channels=3), "out_channels must be 4"),
        (lambda c: c.update(mr_share=0.5, mr_channels=c["channels"]), "no MR|scheme relative"),
        (lambda c: c.update(anatomies="none/*.npz"), "no bowel map to train on"),
    ],
)
def test_a_bad_configuration_is_one_sentence(folder: Path, change: Callable[[Any], None], expected: str) -> None:
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "bad.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=expected):
        loop.train_from_config(folder / "bad.json", minutes=0)


def test_the_recipes_network_fits_into_the_bundle_and_its_labels_are_the_manifests() -> None:
    recipe = read_config(RECIPE)
    with torch.device("meta"):
        network = build_network(recipe.architecture, **recipe.arguments)
    assert 2 * parameter_count(network) < LARGEST_BYTES
    assert all(n % 16 == 0 for n in recipe.patch)
    official = load_manifest().model("segmamba-v2-colorectal-official")
    assert {label.value for label in official.labels} <= set(LABELS.values())
    assert official.labels[0].value == LABELS["tumour"]


@pytest.mark.parametrize("changes", [{"orientations": 1}, {"hierarchical": False}])
def test_an_ablation_is_another_network_for_images_of_any_size(changes: dict[str, Any]) -> None:
    arguments = {"in_channels": 2, "out_channels": 4, **SMALL}
    torch.manual_seed(0)
    whole = build_network("segmamba_v2_paper", **arguments).eval()
    torch.manual_seed(0)
    ablated = build_network("segmamba_v2_paper", **arguments, **changes).eval()
    image = torch.randn(1, 2, 33, 32, 40)
    with torch.no_grad():
        assert ablated(image).shape == (1, 4, 33, 32, 40)
        assert not torch.allclose(ablated(image), whole(image))


def test_one_orientation_reads_the_tokens_in_their_own_order() -> None:
    torch.manual_seed(0)
    single, triple = TriOrientedMamba(4, orientations=1), TriOrientedMamba(4)
    single.load_state_dict(triple.state_dict())
    tokens = torch.randn(1, 6, 4)
    with torch.no_grad():
        # In a volume of one row the other two orders are the same tokens, too.
        assert torch.allclose(3 * single(tokens, (1, 1, 6)), triple(tokens, (1, 1, 6)), atol=1e-6)
    with pytest.raises(ValueError, match="1 or 3"):
        TriOrientedMamba(4, orientations=2)


def test_tumours_are_counted_by_pieces_over_a_millilitre() -> None:
    reference, labels = np.zeros((2, 40, 40, 40), np.uint8)
    reference[2:14, 2:14, 2:14] = reference[22:34, 22:34, 22:34] = 1
    reference[2:5, 30:33, 30:33] = 1  # too small to count
    labels[4:14, 2:14, 2:14] = 1  # found
    labels[2:14, 24:36, 2:14] = 1  # nothing there
    labels[30:33, 2:5, 2:5] = 1  # false, but too small to count
    assert tumours_found(labels, reference, 1.0) == {"tumours": 2, "found": 1, "false_tumours": 1}
    assert tumours_found(labels, reference, 0.5) == {"tumours": 0, "found": 0, "false_tumours": 0}


def test_an_evaluation_measures_each_label_on_its_own(folder: Path) -> None:
    class Known(torch.nn.Module):
        """Takes every third intensity for its label, but the tumour for colon."""

        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            colon = (image > 50).float()
            return torch.cat([1 - colon, 0 * colon, colon, 0 * colon], dim=1)

    case = folder / "held-out" / "case.npz"
    channel = IntensityNormalization("clip", -1000.0, 1000.0, 0.0, 1.0)
    (results,) = evaluate_bowel(Known(), [case], [channel], (32, 32, 32), torch.float32).values()
    assert results["dice_tumour"] == 0
    assert results["dice_colon"] == pytest.approx(2 * (12**3 - 4**3) / (2 * 12**3 - 4**3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_synthesis_never_waits_for_the_gpu() -> None:
    device = torch.device("cuda:0")
    arrays = bowel_arrays(small_bowel.tissues(), np.random.default_rng(0))
    bowel = small_bowel.pack_bowel_map("small", arrays, device)
    channels = read_config(RECIPE).channels
    synthesizer = BowelSynthesizer([bowel], (32, 32, 32), 3.0, channels)
    synthesizer.batch(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = synthesizer.batch(12)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch.image.isfinite().all()
