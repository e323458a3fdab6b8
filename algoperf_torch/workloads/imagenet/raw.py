"""The owners' files of ImageNet and ImageNet-v2, packed or unpacked, as lists of images with labels.

Training images are either `ILSVRC2012_img_train.tar` (a tar file of tar files, one for each class) or a folder
`train/<class>/*.JPEG`. Validation images are either `ILSVRC2012_img_val.tar` with `ILSVRC2012_devkit_t12.tar.gz`, which
holds their classes, or a folder `val/<class>/*.JPEG`. ImageNet-v2 is `imagenetv2-matched-frequency.tar.gz` or the folder
`imagenetv2-matched-frequency-format-val/<class number>/*.jpeg` that it unpacks to.
"""

from __future__ import annotations

import gzip
import io
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from scipy import io as scipy_io

from algoperf_torch.errors import DataError

TRAIN_TAR, TRAIN_FOLDER = "ILSVRC2012_img_train.tar", "train"
VAL_TAR, VAL_FOLDER = "ILSVRC2012_img_val.tar", "val"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
V2_TAR, V2_FOLDER = "imagenetv2-matched-frequency.tar.gz", "imagenetv2-matched-frequency-format-val"
NUM_CLASSES = 1000

_SYNSET = re.compile(r"n\d{8}")
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error)


class Entry(NamedTuple):
    """One image: a file, or the bytes at `offset` of an archive that is not compressed."""

    path: Path
    label: int
    name: str  # for messages
    offset: int | None = None
    size: int = 0

    def read(self) -> bytes:
        """Raises `DataError`."""
        try:
            if self.offset is None:
                return self.path.read_bytes()
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise DataError(f"Cannot read {self.name}: {error.strerror or error}.") from error
        if len(data) != self.size:
            raise DataError(f"{self.name} is truncated: {len(data):,} of {self.size:,} bytes.")
        return data


def training_images(raw: Path) -> tuple[list[str], list[list[Entry]]]:
    """The class names in order, and for each class its images sorted by name. Raises `DataError`."""
    if (raw / TRAIN_FOLDER).is_dir():
        folders = _class_folders(raw / TRAIN_FOLDER)
        return [folder.name for folder in folders], [_folder_images(f, label) for label, f in enumerate(folders)]
    path = raw / TRAIN_TAR
    if not path.is_file():
        raise DataError(f"{raw} holds neither {TRAIN_TAR} nor a folder {TRAIN_FOLDER}.")
    inner = sorted(_members(path), key=lambda member: Path(member.name).stem)
    names = [Path(member.name).stem for member in inner]
    for name in names:
        if not _SYNSET.fullmatch(name):
            raise DataError(f"{path} holds {name!r}, which is no class archive such as n01440764.tar.")
    classes = [_inner_images(path, member, label) for label, member in enumerate(inner)]
    return names, classes


def validation_images(raw: Path, classes: Sequence[str]) -> list[Entry]:
    """All validation images: by class and name from a folder, in the order of the archive's names otherwise."""
    labels = {name: label for label, name in enumerate(classes)}
    if (raw / VAL_FOLDER).is_dir():
        entries = []
        for folder in _class_folders(raw / VAL_FOLDER):
            if folder.name not in labels:
                raise DataError(f"{folder} is a class that the training images do not have.")
            entries += _folder_images(folder, labels[folder.name])
        return entries
    path = raw / VAL_TAR
    if not path.is_file():
        raise DataError(f"{raw} holds neither {VAL_TAR} nor a folder {VAL_FOLDER}.")
    members = sorted(_members(path), key=lambda member: member.name)
    truth = validation_classes(raw / DEVKIT)
    if len(truth) != len(members):
        raise DataError(f"{path} holds {len(members):,} images, {raw / DEVKIT} the classes of {len(truth):,}.")
    unknown = set(truth) - set(labels)
    if unknown:
        raise DataError(f"{raw / DEVKIT}: class {min(unknown)} has no training images.")
    entries = [_entry(path, member, labels[name]) for member, name in zip(members, truth, strict=True)]
    return sorted(entries, key=lambda entry: (entry.label, entry.name))


def validation_classes(devkit: Path) -> list[str]:
    """The class name of every validation image in the order of their numbers. Raises `DataError`."""
    meta = _devkit_file(devkit, "meta.mat")
    truth = _devkit_file(devkit, "ILSVRC2012_validation_ground_truth.txt")
    try:
        synsets = scipy_io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]  # type: ignore[arg-type] # stubs know paths only
        names = {int(number): str(name) for number, name in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        return [names[int(line)] for line in truth.split()]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{devkit} has another content than the owner's ({error!r}).") from error


def v2_images(raw: Path, num_classes: int, spool: Path) -> Iterator[tuple[str, int, bytes]]:
    """Name, label and bytes of every image of ImageNet-v2, by label and name. Raises `DataError`.

    The archive is compressed, so it is read once, in its own order, into a temporary file in the folder `spool`.
    """
    folder, path = raw / V2_FOLDER, raw / V2_TAR
    if folder.is_dir():
        found = [(image, image.parent.name) for image in sorted(folder.glob("*/*.jp*g"))]
        labelled = sorted((_v2_label(name, image, num_classes), image) for image, name in found)
        for label, image in labelled:
            yield str(image), label, Entry(image, label, str(image)).read()
        return
    if not path.is_file():
        raise DataError(f"{raw} holds neither {V2_TAR} nor a folder {V2_FOLDER}.")
    images = []
    with tempfile.TemporaryFile(dir=spool) as file:
        try:
            with tarfile.open(path, "r:gz") as tar:
                for member in tar:
                    if member.isfile() and Path(member.name).suffix.lower() in (".jpeg", ".jpg"):
                        label = _v2_label(Path(member.name).parent.name, Path(member.name), num_classes)
                        images.append((label, f"{path}:{member.name}", file.tell(), member.size))
                        shutil.copyfileobj(_extract(tar, member), file)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is truncated or damaged ({error}). Get it again.") from error
        for label, name, start, size in sorted(images):
            file.seek(start)
            yield name, label, file.read(size)


def _v2_label(name: str, image: Path, num_classes: int) -> int:
    if not name.isdecimal() or int(name) >= num_classes:
        raise DataError(f"{image}: the folder must be a class number from 0 to {num_classes - 1}.")
    return int(name)


def _class_folders(folder: Path) -> list[Path]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    if not folders:
        raise DataError(f"{folder} holds no folders of classes.")
    return folders


def _folder_images(folder: Path, label: int) -> list[Entry]:
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpeg", ".jpg"))
    if not images:
        raise DataError(f"{folder} holds no images.")
    return [Entry(path, label, str(path)) for path in images]


def _members(path: Path) -> list[tarfile.TarInfo]:
    """The files of an archive. Raises `DataError` for one that is damaged or ends early."""
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar if member.isfile()]
        ends_early = bool(members) and members[-1].offset_data + members[-1].size > path.stat().st_size
    except _TAR_ERRORS as error:
        raise DataError(f"{path} is truncated or damaged ({error}). Get it again.") from error
    if not members or ends_early:
        raise DataError(f"{path} is truncated or empty. Get it again.")
    return members


def _entry(path: Path, member: tarfile.TarInfo, label: int) -> Entry:
    return Entry(path, label, f"{path}:{member.name}", member.offset_data, member.size)


def _inner_images(path: Path, outer: tarfile.TarInfo, label: int) -> list[Entry]:
    """The images of one class archive inside the training archive, without reading them."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=_Section(file, outer), mode="r:") as tar:
            members = sorted((member for member in tar if member.isfile()), key=lambda member: member.name)
    except _TAR_ERRORS as error:
        raise DataError(f"{path}:{outer.name} is truncated or damaged ({error}). Get it again.") from error
    if not members:
        raise DataError(f"{path}:{outer.name} holds no images.")
    names = [f"{path}:{outer.name}:{member.name}" for member in members]
    return [
        Entry(path, label, name, outer.offset_data + member.offset_data, member.size)
        for name, member in zip(names, members, strict=True)
    ]


class _Section(io.RawIOBase):
    """The bytes of one member of an archive as a file of its own."""

    def __init__(self, file: IO[bytes], member: tarfile.TarInfo) -> None:
        self._file, self._start, self._size, self._position = file, member.offset_data, member.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data


def _devkit_file(devkit: Path, name: str) -> bytes:
    try:
        with tarfile.open(devkit, "r:gz") as tar:
            for member in tar:
                if Path(member.name).name == name:
                    return _extract(tar, member).read()
    except _TAR_ERRORS as error:
        raise DataError(f"Cannot read {devkit} ({error}); it gives the classes of {VAL_TAR}.") from error
    raise DataError(f"{devkit} holds no {name}.")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    assert file is not None, "only regular files are extracted"
    return file
