"""Four networks in one trainer, the same minutes each: vertebral bodies on lumbar MR of real people.

Here:           python benchmarks/lumbar_mr.py pack REAL_MR_FOLDER PACKED
With the GPU:   python benchmarks/lumbar_mr.py run PACKED/*.xz --work WORK --minutes 4 --out OUT
                (needs dynamic-network-architectures for nnU-Net's plain U-Net)
Speed alone:    ... run PACKED/part0.xz ... --iterations 100 --changes '{"patch": [128, 128, 128], "log_every": 10}'
                (trains so many iterations, tests nothing)

REAL_MR_FOLDER holds NAME_mr.nii.gz, NAME_bodies.nii.gz and split.csv (exam, part). All bodies are one class: their
levels differ by number only, T11 to L5 in one source and L1 to L5 in the other, and a patch seldom shows which is
which. What is above the highest labelled body counts neither in training nor in the test: more bodies are there, and
nobody has labelled them. Nothing was tuned on the test people: one recipe, one seed, the last averaged weights.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import json
import lzma
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from segmamba.inference.model_grid import ModelGrid
from segmamba.models.manifest import IntensityNormalization
from segmamba.networks import ARCHITECTURES, build_network, parameter_count
from segmamba.networks.blocks import OutputBlock
from segmamba.networks.segmamba_v2_paper import SegMambaV2Paper
from segmamba.training import loop
from segmamba.training.dataset import cache
from segmamba.training.dataset.plan import IGNORED, Plan, read_plan, write_plan
from segmamba.training.dataset.task import DatasetTask
from segmamba.training.dataset.validation import logits_of

# An arm that fails so early (seconds) is tried once more, without CUDA graphs.
RETRIED_WITHIN = 60.0
SPACING = (1.25, 1.25, 1.25)
CHUNKS = 2
FEATURES = (32, 64, 128, 256, 320, 320)
# Lines of the log (each of log_every iterations) that belong to the start: a step is recorded, convolutions are chosen.
START_LINES = 3
# Weights of deep supervision's losses at full, half and a quarter of the resolution; nnU-Net's, normalised.
DEPTH_WEIGHTS = (4 / 7, 2 / 7, 1 / 7)
SPINEMAMBA = {"features": [16, 32, 64, 128, 192], "shape_prior": False}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "segmamba-v2-paper": ("segmamba_v2_paper", {}),
    "segmamba-v2": ("segmamba_v2_release", {}),
    "spinemamba": ("spine_mamba", SPINEMAMBA),
    "nnunet-plain": ("nnunet_plain", {}),
    "segmamba-v2-paper-deep": ("segmamba_v2_paper_deep", {}),
}
DEFAULT_ARMS = list(ARMS)[:4]
ARCHITECTURES["nnunet_plain"] = ("lumbar_mr", "PlainUNet")
ARCHITECTURES["segmamba_v2_paper_deep"] = ("lumbar_mr", "DeeplySupervised")


class PlainUNet(nn.Module):
    """nnU-Net's plain U-Net as its planner configures it for a patch of (192, 160, 64), without deep supervision."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        from dynamic_network_architectures.architectures.unet import PlainConvUNet

        self.unet = PlainConvUNet(
            input_channels=in_channels,
            n_stages=len(FEATURES),
            features_per_stage=FEATURES,
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=[[1, 1, 1], *[[2, 2, 2]] * 4, [2, 2, 1]],
            n_conv_per_stage=2,
            num_classes=out_channels,
            n_conv_per_stage_decoder=2,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=False,
        )
        self.unet.apply(self.unet.initialize)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.unet(image)
        return answer


class DeeplySupervised(nn.Module):
    """SegMamba-V2 of the paper with answers at half and a quarter of the resolution, too, while it is trained."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.whole = SegMambaV2Paper(in_channels, out_channels)
        self.heads = nn.ModuleList(OutputBlock(width, out_channels) for width in (32, 64))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not self.training:
            return self.whole(image)
        inner: list[Tensor] = []
        decoders = (self.whole.decoders[2], self.whole.decoders[1])
        hooks = [one.register_forward_hook(lambda _, __, answer: inner.append(answer)) for one in decoders]
        answer = self.whole(image)
        for hook in hooks:
            hook.remove()
        quarter, half = inner
        return answer, self.heads[0](half), self.heads[1](quarter)


class DeepTask(DatasetTask):
    """The same loss at each resolution of a `DeeplySupervised` network, with labels of the nearest voxel."""

    def loss(self, answer: Tensor | Sequence[Tensor], *targets: Tensor) -> Tensor:
        if isinstance(answer, Tensor):
            return super().loss(answer, *targets)
        total = torch.zeros((), device=targets[0].device)
        for weight, one in zip(DEPTH_WEIGHTS, answer, strict=True):
            labels = functional.interpolate(targets[0][:, None].float(), one.shape[2:], mode="nearest-exact")
            total = total + weight * super().loss(one, labels[:, 0].long())
        return total


# Packing: here, where the images are.


def pack(folder: Path, packed: Path) -> None:
    """Bring all people to the plan's grid in eight bits, and write them in parts that travel."""
    import tempfile

    from segmamba.training.dataset.fingerprint import take_fingerprint
    from segmamba.training.dataset.planning import make_plan
    from segmamba.training.dataset.prepare import prepare
    from segmamba.training.dataset.read import read_dataset

    parts = split(folder / "split.csv")
    packed.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        dataset = read_dataset(write_dataset(folder, parts, Path(temporary) / "lumbar-mr"))
        fingerprint = take_fingerprint(replace(dataset, cases=_of(dataset.cases, parts, "train")))
        plan = make_plan(dataset, fingerprint, "segmamba-v2-paper", spacing=SPACING)
        write_plan(plan, packed / "plan.json")
        raw = replace(plan, normalization=(IntensityNormalization("clip", 0.0, 255.0, 0.0, 1.0),))
        for number in range(CHUNKS):
            content: dict[str, np.ndarray] = {}
            index = {}
            # Every second person of each part: also half of the chunks trains and tests.
            chosen = [
                *_of(dataset.cases, parts, "train")[number::CHUNKS],
                *_of(dataset.cases, parts, "test")[number::2],
            ]
            for case in chosen:
                made = prepare(case, raw)
                content[f"{case.name}_image"] = differences(np.round(made.image[0]).astype(np.uint8))
                content[f"{case.name}_labels"] = made.labels
                if parts[case.name] == "test":
                    content[f"{case.name}_reference"] = reference_of(case.labels)
                index[case.name] = {"part": parts[case.name], "grid": cache.described(made.grid)}
            buffer = io.BytesIO()
            np.savez(buffer, index=np.array(json.dumps(index)), **content)  # type: ignore[arg-type]
            data = lzma.compress(buffer.getvalue(), preset=6)
            (packed / f"part{number}.xz").write_bytes(data)
            print(f"part{number}.xz: {len(chosen)} people, {len(data) / 2**20:.1f} MiB", flush=True)
    print((packed / "plan.json").read_text())


def split(path: Path) -> dict[str, str]:
    """Return "train" or "test" for each exam."""
    with path.open() as file:
        return {row["exam"]: row["part"] for row in csv.DictReader(file)}


def write_dataset(folder: Path, parts: dict[str, str], target: Path) -> Path:
    """Write the images (as links) and one class of bodies in nnU-Net's layout, and return its folder."""
    import SimpleITK as sitk

    for name in ("imagesTr", "labelsTr"):
        (target / name).mkdir(parents=True)
    for exam in parts:
        (target / "imagesTr" / f"{exam}_0000.nii.gz").symlink_to(folder.resolve() / f"{exam}_mr.nii.gz")
        image = sitk.ReadImage(str(folder / f"{exam}_bodies.nii.gz"))
        levels = sitk.GetArrayFromImage(image)
        labels = (levels > 0).astype(np.uint8)
        heights = np.flatnonzero(labels.any(axis=(1, 2)))
        lowest, highest = (levels[z][levels[z] > 0] for z in (heights[0], heights[-1]))
        assert lowest.mean() > highest.mean(), exam  # the array's first axis grows upwards
        labels[heights[-1] + 1 :] = 2
        written = sitk.GetImageFromArray(labels)
        written.CopyInformation(image)
        sitk.WriteImage(written, str(target / "labelsTr" / f"{exam}.nii.gz"), useCompression=True)
    description = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "vertebral body": 1, "ignore": 2},
        "numTraining": len(parts),
        "file_ending": ".nii.gz",
    }
    (target / "dataset.json").write_text(json.dumps(description))
    return target


def reference_of(labels: Path) -> np.ndarray:
    """Return the labels on their own grid: 0, 1, or `IGNORED`; uint8 (z, y, x)."""
    from segmamba.io.read import read_image

    return cache.as_classes(read_image(labels).array, [1], 2)


def _of(cases: Sequence[Any], parts: dict[str, str], part: str) -> tuple[Any, ...]:
    return tuple(case for case in cases if parts[case.name] == part)


def differences(values: np.ndarray) -> np.ndarray:
    """Return what a voxel differs by from the one that its neighbours (z, y, x) let expect, modulo 256."""
    given = values.astype(np.int16)
    below = given.copy()
    below[:, :, 1:] -= given[:, :, :-1]  # the slices are thick: the next one is the best guess
    return np.diff(below, axis=0, prepend=np.int16(0)).astype(np.uint8)


def restored(values: np.ndarray) -> np.ndarray:
    """Undo `differences`."""
    below = np.cumsum(values, axis=0, dtype=np.uint8)
    return np.cumsum(below, axis=2, dtype=np.uint8)


# Running: where the GPU is.


def unpack(files: Sequence[Path], plan: Plan, work: Path, expected: int = 0) -> None:
    """Normalise the packed people as a plan says and add them to the cache in ``work``."""
    cache.make_folder(work / "cache")
    parts_file = work / "parts.json"
    parts = json.loads(parts_file.read_text()) if parts_file.is_file() else {}
    for file in files:
        with np.load(io.BytesIO(lzma.decompress(file.read_bytes()))) as content:
            index = json.loads(str(content["index"]))
            for name, entry in index.items():
                image, padding = normalised(restored(content[f"{name}_image"]), plan.normalization[0])
                grid, labels = cache.restored_grid(entry["grid"]), content[f"{name}_labels"]
                case = cache.PreparedCase(image[None], labels, (padding,), grid)
                cache.write_case(work / "cache", name, name, case, plan.classes)
                if entry["part"] == "test":
                    np.save(work / f"{name}_reference.npy", content[f"{name}_reference"])
                parts[name] = entry["part"]
    parts_file.write_text(json.dumps(parts))
    counts = {part: list(parts.values()).count(part) for part in ("train", "test")}
    print(f"cache: {counts['train']} people to train, {counts['test']} to test", flush=True)
    if expected and len(parts) != expected:
        sys.exit(f"MISSING: {expected} people were expected; unpack the other part first.")


def normalised(values: np.ndarray, channel: IntensityNormalization) -> tuple[np.ndarray, float]:
    """Clip to percentiles of the voxels that are not 0, subtract the mean and divide by the deviation."""
    low, high = np.percentile(values[values != 0], (channel.low, channel.high))
    clipped = np.clip(values.astype(np.float32), low, high)
    image = (clipped - clipped.mean()) / clipped.std()
    return image, float(image.min())


def arm(
    name: str, work: Path, out: Path, minutes: float, changes: dict[str, Any], iterations: int | None = None
) -> dict[str, Any]:
    """Train one network for minutes and test it, or for iterations without a test; return its row."""
    changes = dict(changes)
    plan = read_plan(work / "plan.json")
    architecture, arguments = ARMS[name]
    channels = {"in_channels": len(plan.channels), "out_channels": plan.classes}
    patch = tuple(changes.pop("patch", plan.patch))
    people = changes.pop("people", None)
    recipe = replace(
        plan.recipe,
        architecture=architecture,
        arguments={**channels, **arguments, **changes.pop("arguments", {})},
        minutes=None if iterations else minutes,
        iterations=iterations or 10**6,
        checkpoint_every=10**6,
        folder=str(work / f"run-{name}-{time.time():.0f}"),
        **changes,
    )
    plan = replace(plan, recipe=recipe, patch=patch)
    parts = json.loads((work / "parts.json").read_text())
    cases = {
        part: [cache.read_case(work / "cache", n) for n in sorted(parts, reverse=True) if parts[n] == part][:people]
        for part in ("train", "test")
    }
    print(f"{name}: {len(cases['train'])} to train, patch {patch}, batch {recipe.batch}", flush=True)
    began = time.monotonic()
    weights = loop.train(recipe, task=DeepTask(plan, cases["train"]))
    trained = time.monotonic() - began
    memory = peak_gib()
    file = weights.parent / "log.jsonl"
    log = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    losses = [line for line in log if "loss" in line]
    (out / f"log_{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    network = build_network(recipe.architecture, **recipe.arguments)
    loop.load_weights(network, loop.load_state_dict(weights))
    device = torch.device("cuda" if torch.cuda.is_available() and recipe.device != "cpu" else "cpu")
    network = network.to(device).eval()
    began = time.monotonic()
    scores = {} if iterations else test(network, cases["test"], plan, work, out / f"predictions_{name}.npz")
    tested = time.monotonic() - began
    speeds = [line["per_second"] for line in losses[START_LINES:] or losses[1:] or losses]
    row = {
        "network": name,
        "parameters_M": round(parameter_count(network) / 1e6, 2),
        "iterations": torch.load(weights.parent / "state.pt", map_location="cpu", mmap=True)["iteration"],
        "last_loss": losses[-1]["loss"] if losses else None,
        "ms_per_iteration": round(1000 / float(np.median(speeds)), 1) if speeds else None,
        "plain_ms": plain_milliseconds(network, plan, recipe.batch, device),
        "peak_allocated_GiB": memory[0],
        "peak_reserved_GiB": memory[1],
        "train_s": round(trained, 1),
        "test_s": round(tested, 1),
        **(summary(scores) if scores else {}),
        "people": scores,
    }
    (out / f"row_{name}.json").write_text(json.dumps(row, indent=1))
    return row


def test(
    network: nn.Module, cases: Sequence[cache.CachedCase], plan: Plan, work: Path, predictions: Path
) -> dict[str, dict[str, float]]:
    """Return the Dice of each person on the reference's own grid, and on the network's."""
    scores, kept = {}, {}
    for case in cases:
        logits = logits_of(network, case, plan.patch)
        on_network_grid = dice(logits.argmax(dim=0).cpu().numpy() == 1, np.asarray(case.labels))
        labels = on_input_grid(logits.softmax(dim=0), case.grid)
        reference = np.load(work / f"{case.name}_reference.npy")
        scores[case.name] = {
            "dice": round(dice(labels == 1, reference), 4),
            "dice_network_grid": round(on_network_grid, 4),
            "mL": round(float(((labels == 1) & (reference != IGNORED)).sum()) / 1000, 1),
            "reference_mL": round(float((reference == 1).sum()) / 1000, 1),
        }
        kept[case.name] = np.packbits(labels == 1)
        print(f"  {case.name} {scores[case.name]}", flush=True)
    np.savez_compressed(predictions, **kept)  # type: ignore[arg-type]
    return scores


def on_input_grid(probabilities: torch.Tensor, grid: ModelGrid) -> np.ndarray:
    from segmamba.inference.resample_back import resample_to_input

    return resample_to_input(probabilities, grid, [0, 1])[0]


def dice(found: np.ndarray, reference: np.ndarray) -> float:
    """Return the Dice of the bodies; what is not labelled does not count."""
    found = found & (reference != IGNORED)
    theirs = reference == 1
    return float(2 * (found & theirs).sum() / max(1, found.sum() + theirs.sum()))


def summary(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    values = {name: person["dice"] for name, person in scores.items()}
    groups = {
        "dice": list(values.values()),
        "dice_T2": [v for n, v in values.items() if n.startswith("vb2")],
        "dice_T1": [v for n, v in values.items() if n.startswith("vb3")],
    }
    means = {name: round(float(np.mean(found)), 4) for name, found in groups.items() if found}
    return {**means, "dice_lowest": round(min(values.values()), 4), "dice_std": round(float(np.std(groups["dice"])), 4)}


def plain_milliseconds(network: nn.Module, plan: Plan, batch: int, device: torch.device) -> float | None:
    """Return the time of a bare forward and backward of a network on the training's batch, in ms; None on a processor.

    Launched kernel by kernel, as a plain PyTorch loop does it, without optimizer or data.
    """
    if device.type != "cuda":
        return None
    try:
        gc.collect()
        torch.cuda.empty_cache()
        image = torch.randn((batch, len(plan.channels), *plan.patch), device=device)
        network.train()

        def step() -> None:
            network.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                answer = network(image)
                answers = (answer,) if isinstance(answer, Tensor) else answer
                loss = sum(one.float().square().mean() for one in answers)
            loss.backward()

        for _ in range(5):
            step()
        torch.cuda.synchronize()
        began = time.monotonic()
        for _ in range(20):
            step()
        torch.cuda.synchronize()
        return round((time.monotonic() - began) * 50, 1)
    except RuntimeError as error:
        print(f"  no plain time: {error}", flush=True)
        return None


def peak_gib() -> tuple[float, float]:
    """Return the most that was allocated and reserved on the GPU, in GiB."""
    if not torch.cuda.is_available():
        return 0.0, 0.0
    found = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return round(found[0] / 2**30, 2), round(found[1] / 2**30, 2)


def run(options: argparse.Namespace) -> int:
    """Unpack, then train and test each network in a process of its own; print the table."""
    began = time.monotonic()
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.plan:
        (options.work / "plan.json").write_bytes(options.plan.read_bytes())
    unpack(options.parts, read_plan(options.work / "plan.json"), options.work, options.expect)
    print(f"unpacked after {time.monotonic() - began:.0f} s", flush=True)
    rows, failed = [], []
    for name in options.arms:
        start = time.monotonic()
        try:
            try:
                subprocess.run(_command(name, options), check=True, timeout=60 * options.minutes + options.spare)
            except subprocess.CalledProcessError as error:
                if time.monotonic() - start > RETRIED_WITHIN:
                    raise
                print(f"AGAIN {name}, launched kernel by kernel: {error}", flush=True)
                plain = _command(name, options, record=False)
                subprocess.run(plain, check=True, timeout=60 * options.minutes + options.spare)
            rows.append(json.loads((options.out / f"row_{name}.json").read_text()))
        except (subprocess.SubprocessError, OSError) as error:
            failed.append(name)
            print(f"FAILED {name}: {error}", flush=True)
        print(f"--- {name} after {time.monotonic() - began:.0f} s", flush=True)
    columns = [key for key in rows[0] if key != "people"] if rows else []
    print("\t".join(columns))
    for row in rows:
        print("\t".join(str(row[key]) for key in columns), flush=True)
    print("FAILED: " + ", ".join(failed) if failed else "ALL DONE", flush=True)
    return 1 if failed else 0


def _command(name: str, options: argparse.Namespace, **changes: Any) -> list[str]:
    changed = json.dumps(json.loads(options.changes) | changes)
    command = [sys.executable, __file__, "arm", name, "--work", str(options.work), "--out", str(options.out)]
    limit = ["--iterations", str(options.iterations)] if options.iterations else ["--minutes", str(options.minutes)]
    return [*command, *limit, "--changes", changed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    packing = commands.add_parser("pack")
    packing.add_argument("folder", type=Path)
    packing.add_argument("packed", type=Path)
    running = commands.add_parser("run")
    running.add_argument("parts", type=Path, nargs="*")
    running.add_argument("--plan", type=Path)
    running.add_argument("--expect", type=int, default=0, help="people that must be there, or nothing is trained")
    running.add_argument("--arms", nargs="+", choices=list(ARMS), default=DEFAULT_ARMS)
    running.add_argument("--spare", type=float, default=100.0, help="seconds beside the training that an arm may take")
    single = commands.add_parser("arm")
    single.add_argument("name", choices=list(ARMS))
    for command in (running, single):
        command.add_argument("--work", type=Path, required=True)
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--minutes", type=float, default=4.0)
        command.add_argument("--iterations", type=int, help="in place of minutes, and nothing is tested")
        command.add_argument("--changes", default="{}", help="of the recipe or the patch, as JSON")
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.folder, options.packed)
        return 0
    if options.command == "arm":
        changes = json.loads(options.changes)
        arm(options.name, options.work, options.out, options.minutes, changes, options.iterations)
        return 0
    return run(options)


if __name__ == "__main__":
    sys.modules["lumbar_mr"] = sys.modules["__main__"]
    sys.exit(main())
