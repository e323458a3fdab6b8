"""`algoperf data synth`: small data in a dataset's own format, made from a seed, so that everything runs without a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from algoperf_torch.data.datasets import dataset
from algoperf_torch.data.manifest import Manifest, new_folder, record_files, write_manifest
from algoperf_torch.data.prepare import parse_settings
from algoperf_torch.errors import UsageError
from algoperf_torch.spec import Generation


@dataclass(frozen=True, kw_only=True)
class SynthOptions:
    """Writes generated data with learnable content. Results on them are no results of the benchmark."""

    dataset: tyro.conf.Positional[str]
    """Name of the dataset, such as mnist."""
    out: Path
    """Directory of all data; the dataset gets the folder <out>/<dataset>."""
    examples: int | None = None
    """Training examples; the other splits follow from it. Default: enough for a trial of a minute."""
    seed: int = 0
    """Another seed gives other data."""
    set: tuple[str, ...] = ()
    """Settings of the generator, as name=value: crop (fastmri), side (imagenet), words (librispeech, wmt), letter_ms
    (librispeech)."""
    overwrite: bool = False
    """Replace the folder if it exists."""


def main(options: SynthOptions) -> int:
    """Writes <out>/<dataset> with a manifest; the folder appears only when it is complete."""
    synth = dataset(options.dataset).part("synth")
    num_train = synth.DEFAULT_EXAMPLES if options.examples is None else options.examples
    if num_train < 1 or options.seed < 0:
        raise UsageError("--examples must be at least 1 and --seed at least 0.")
    target = options.out / options.dataset
    settings = parse_settings(options.set, getattr(synth, "SETTINGS", {}))
    generation = Generation(
        examples=num_train, seed=options.seed, generator=generator(options.dataset), settings=settings
    )
    manifest = write(options.dataset, target, generation, overwrite=options.overwrite)
    total = sum(record.bytes or 0 for record in manifest.files)
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.examples.items())
    Console(highlight=False, soft_wrap=True).print(f"Wrote {target}: {counts} examples, {total / 1e6:.1f} MB.")
    return 0


def generator(name: str) -> int:
    """Version of a dataset's generator: 1, or what its module says."""
    return int(getattr(dataset(name).part("synth"), "GENERATOR", 1))


def write(name: str, target: Path, generation: Generation, *, overwrite: bool = False) -> Manifest:
    """Writes the raw files of a dataset as the folder `target`, by the generator of this package."""
    with new_folder(target, overwrite=overwrite) as folder:
        examples = (
            dataset(name)
            .part("synth")
            .synthesise(folder, num_train=generation.examples, seed=generation.seed, **generation.settings)
        )
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        manifest = Manifest(
            dataset=name,
            examples={str(split): count for split, count in examples.items()},
            files=record_files(folder, names),
            synthetic=True,
            generation=generation,
        )
        write_manifest(folder, manifest)
    return manifest
