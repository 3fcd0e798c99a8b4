"""A bundle as `yolokd bundle` makes it: opened with every file checked, unpacked without trusting the zip file."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime

from yolokd_edge.common import PACKAGE, EdgeError, one_line, sha256
from yolokd_edge.runtimes.table import AUTO, PROVIDERS, check_provider, format_of

BUNDLE_SCHEMA = "yolokd.bundle/1"
MANIFEST = "bundle.json"
MANIFEST_PARTS = ("contract", "models", "files")
EXPECTED, EXPECTED_RAW = "parity/expected_dets.json", "parity/expected_raw.npz"
# Bytes, bytes, and times the size of the zip file: models and images hardly shrink, the runtime's text fourfold.
MAX_UNPACKED, MAX_MANIFEST, MAX_RATIO = 2 << 30, 4 << 20, 20
SYMLINK = 0o120000  # of a zip entry's file mode


class Bundle(NamedTuple):
    """A bundle whose every file has the checksum that its manifest says."""

    path: Path  # as given: the zip file or the folder
    folder: Path  # where the files lie
    manifest: dict[str, Any]
    unpacked: Any  # owner of the temporary folder of a zip file, else None

    def model(self, precision: str = "fp32", provider: str = "cpu") -> Path:
        """The ONNX file of a precision (fp32, fp16, int8) that is meant for a provider."""
        check_provider(provider)
        models: dict[str, dict[str, Any]] = self.manifest["models"]
        for name in _bundle_providers(provider):
            for file, entry in models.items():
                if entry["precision"] == precision and name in entry["providers"]:
                    return self.folder / file
        held = ", ".join(f"{file} ({e['precision']} for {'/'.join(e['providers'])})" for file, e in models.items())
        raise EdgeError(f"{self.path} holds no {precision} model for the provider {provider}, only {held}.")

    def setting(self, key: str) -> Any:
        """A default of detection: conf, iou or max_det."""
        return self.manifest["contract"]["defaults"][key]


def _bundle_providers(provider: str) -> list[str]:
    """The names under which a manifest lists files for a provider, in the order of preference."""
    if provider == "auto":
        available = onnxruntime.get_available_providers()
        return [name for name in AUTO if PROVIDERS[name].names[0] in available]
    return [PROVIDERS[provider].bundle_files or provider]


def is_bundle(path: Path) -> bool:
    """Whether a path is to be read as a bundle: a zip file or a folder."""
    return path.suffix.lower() == ".zip" or path.is_dir() and format_of(path) is None


def open_bundle(path: str | Path) -> Bundle:
    """Read a bundle and check every file in it; a zip file is unpacked to a temporary folder first."""
    path = Path(path)
    if path.is_dir():
        try:
            text = (path / MANIFEST).read_bytes()
        except OSError:
            raise EdgeError(f"The folder {path} is not a bundle: it holds no readable {MANIFEST}.") from None
        bundle = Bundle(path, path, read_manifest(text, path), None)
    elif path.is_file():
        unpacked = tempfile.TemporaryDirectory(prefix="yolokd-")
        folder = Path(unpacked.name)
        bundle = Bundle(path, folder, _unpack(path, folder), unpacked)
    else:
        raise EdgeError(f"There is no bundle {path}.")
    for name, entry in bundle.manifest["files"].items():
        file = bundle.folder / name
        if not file.is_file():
            raise EdgeError(f"{path}: the file {name} is missing, so the bundle is not complete.")
        if bundle.folder.resolve() not in file.resolve().parents:
            raise EdgeError(f"{path}: {name} is a link that leaves the bundle's folder.")
        if sha256(file) != entry["sha256"]:
            raise EdgeError(f"{path}: {name} is not the file that was bundled, its checksum differs.")
    return bundle


def read_manifest(text: bytes, path: Path) -> dict[str, Any]:
    """Parse and check a manifest: schema, parts, and that no file name leaves the folder."""
    try:
        manifest: dict[str, Any] = json.loads(text)
        family, version = manifest["schema"].split("/")
        newest = int(BUNDLE_SCHEMA.split("/")[1])
        if family != "yolokd.bundle" or int(version) < 1:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise EdgeError(f"{path}: {MANIFEST} is not a manifest of the schema {BUNDLE_SCHEMA}.") from None
    if int(version) > newest:
        raise EdgeError(
            f"{path} has the schema {manifest['schema']}, newer than {BUNDLE_SCHEMA} which this runtime reads: use the "
            "yolokd_edge that came with the bundle."
        )
    missing = [part for part in MANIFEST_PARTS if not isinstance(manifest.get(part), dict)]
    if missing:
        raise EdgeError(f"{path}: {MANIFEST} is incomplete ({', '.join(missing)}).")
    for name in manifest["files"]:
        _refuse_unsafe(name, path)
    try:
        _touch_all(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise EdgeError(f"{path}: {MANIFEST} has entries that cannot be read.") from None
    return manifest


def _touch_all(manifest: dict[str, Any]) -> None:
    """Read everything once that is read later, so that what is malformed is found here."""
    for entry in manifest["files"].values():
        str(entry["sha256"]), int(entry["bytes"])
    for name, entry in manifest["models"].items():
        _refuse_unsafe(name, Path(MANIFEST))
        _whole(manifest["files"][name]["bytes"], 0)
        if not isinstance(entry["precision"], str) or not all(isinstance(p, str) for p in entry["providers"]):
            raise ValueError
    contract = manifest["contract"]
    height, width = contract["imgsz"]
    for side in (height, width):
        _whole(side, 1)
    str(contract["output"])
    {int(k): v for k, v in contract["names"].items()}
    for key in ("conf", "iou"):
        value = contract["defaults"][key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError
    _whole(contract["defaults"]["max_det"], 1)


def _whole(value: Any, least: int) -> None:
    """Refuse what is not a whole number of a sensible size: a text, nan, 10**400."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1 << 40:
        raise ValueError


def _refuse_unsafe(name: str, path: Path) -> None:
    parts = name.split("/")
    if not name or "\\" in name or ":" in name or {"", ".", ".."} & set(parts):
        raise EdgeError(f"{path}: the name {name!r} leaves the bundle's folder, so nothing was unpacked.")


def _unpack(path: Path, folder: Path) -> dict[str, Any]:
    """Unpack a bundle's zip file into an empty folder and return its manifest; nothing it says is trusted."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            manifest = _check_archive(archive, entries, path)
            for entry in entries:
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)  # ends at the size that the entry declares, checked before
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise EdgeError(f"{path} is not an intact zip file ({one_line(error)}).") from None
    except OSError as error:
        raise EdgeError(f"{path} cannot be unpacked to {folder} ({error.strerror or one_line(error)}).") from None
    return manifest


def _check_archive(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], path: Path) -> dict[str, Any]:
    for entry in entries:
        _refuse_unsafe(entry.filename, path)
        if (entry.external_attr >> 16) & 0o170000 == SYMLINK:
            raise EdgeError(f"{path}: {entry.filename} is a link, so nothing was unpacked.")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKED or total > MAX_RATIO * path.stat().st_size:
        raise EdgeError(
            f"{path} would unpack to {total / 1e6:.0f} MB, more than a bundle can "
            f"({MAX_RATIO} times its own size, {MAX_UNPACKED / 1e9:.1f} GB); nothing was unpacked."
        )
    sizes = {entry.filename: entry.file_size for entry in entries}
    if sizes.get(MANIFEST, MAX_MANIFEST + 1) > MAX_MANIFEST:
        raise EdgeError(f"{path} is not a bundle: it holds no {MANIFEST} of a sensible size.")
    manifest = read_manifest(archive.read(MANIFEST), path)
    unknown = sorted(set(sizes) - set(manifest["files"]) - {MANIFEST})
    if unknown or len(sizes) < len(entries):
        what = f"{unknown[0]}, which its manifest does not list" if unknown else "a file twice"
        raise EdgeError(f"{path} holds {what}; nothing was unpacked.")
    return manifest


def own_bundle() -> Path:
    """The unpacked bundle that this package lies in."""
    folder = find_own_bundle()
    if folder is None:
        raise EdgeError("No model: give --model with an ONNX file or a bundle.")
    return folder


def find_own_bundle() -> Path | None:
    """The unpacked bundle that this package lies in, as a folder or as a zip file; None where it lies in none."""
    folder = PACKAGE.parent.parent if PACKAGE.parent.is_file() else PACKAGE.parent
    return folder if (folder / MANIFEST).is_file() else None
