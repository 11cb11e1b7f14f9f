"""Decode and rescale the pixels of DICOM images, and replace padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import Finding, InputError
from kidseg.io import checks
from kidseg.io.dicom_codestream import check_frames
from kidseg.io.dicom_frames import Image, Plane
from kidseg.io.dicom_header import number, quiet, read_dataset, reading
from kidseg.io.dicom_image_type import image_type_findings
from kidseg.io.dicom_rescale import check_stated, check_valid, rescaling
from kidseg.io.gdcm_process import GdcmProcess
from kidseg.io.numbers import scaled
from kidseg.io.scan import ReadOptions

if TYPE_CHECKING:
    from kidseg.io.dicom_series import Series

__all__ = ["check_pixels", "decode"]

_IMPLICIT = "1.2.840.10008.1.2"
_LOSSY = {
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
}
_JPEG_2000 = "1.2.840.10008.1.2.4.9"  # 90 and 91; their signedness is in the codestream
# GDCM may abort the process on damaged pixels; where there is no other decoder, it has its own.
_DECODERS = {
    "1.2.840.10008.1.2.4.50": "pillow",
    "1.2.840.10008.1.2.4.51": "pillow",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
}
_LOSSLESS_JPEG = {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"}
# Maximum compression ratio: a constant image in JPEG 2000, far beyond that of any patient.
_COMPRESSION = 10_000
# Padding in CT is below this value; all tissue, including lung, is above.
_PADDING_HU = -950.0

# The densest metal that 16 bits of an extended CT scale hold; unsigned padding may be above it.
_METAL_HU = 40950.0


def check_pixels(
    series: Series, shape: tuple[int, int], path: Path, options: ReadOptions
) -> tuple[Finding, ...]:
    """Check before decoding that the pixels can be decoded and fit in memory.

    Raises:
        InputError: "undecodable-syntax", "unsupported-type", "modality-lut", "not-hounsfield",
            "absurd-size".
        ResourceError: "not-enough-memory".
    """
    rows, columns = shape
    for image in series.images:
        _check_syntax(image)
        bits = _bits(image)
        compressed = _is_compressed(image.syntax)
        checks.check_memory(
            rows * columns * len(image.planes) * bits // 8,
            image.path,
            held_bytes=image.path.stat().st_size * (_COMPRESSION if compressed else 1),
            limit_bytes=options.memory_limit_bytes,
        )
        if "ModalityLUTSequence" in image.fields:
            raise InputError(
                "its values are rescaled with a lookup table (Modality LUT): not supported",
                path=image.path,
                code="modality-lut",
                next_step="Export the original CT images in Hounsfield units.",
            )
    voxels = rows * columns * series.n_images
    checks.check_memory(2 * 4 * voxels, path, limit_bytes=options.memory_limit_bytes)
    return (*_lossy(series, path), *_rescaling(series, path, options))


def _check_syntax(image: Image) -> None:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    with quiet():
        uid = UID(image.syntax or _IMPLICIT)
        try:
            if get_decoder(uid).is_available:
                return
        except NotImplementedError:
            pass
        name = uid.name if uid.name != uid else "unknown"
    raise InputError(
        f"its transfer syntax {uid} ({name}) cannot be decoded",
        path=image.path,
        code="undecodable-syntax",
        next_step="Export it uncompressed (Explicit VR Little Endian).",
    )


def _is_compressed(syntax: str) -> bool:
    from pydicom.uid import UID

    uid = UID(syntax or _IMPLICIT)
    return uid.is_encapsulated or uid.is_deflated  # of one that can be decoded


def _bits(image: Image) -> int:
    """Bits Allocated, if the bit layout is supported.

    Raises:
        InputError: "unsupported-type".
    """
    names = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    allocated, stored, high, signed = (number(image.fields, name) for name in names)
    valid = allocated in (8, 16, 32) and stored is not None and 0 < stored <= (allocated or 0)
    if valid and signed in (0, 1) and high in (None, (stored or 0) - 1):
        return int(allocated or 0)
    said = (image.text(name)[:20] or "missing" for name in names)
    raise InputError(
        "its pixel format is not supported (bits allocated: {}, stored: {}, high bit: {}, pixel "
        "representation: {})".format(*said),
        path=image.path,
        code="unsupported-type",
        next_step="Export the original CT images.",
    )


def _lossy(series: Series, path: Path) -> tuple[Finding, ...]:
    lossy = [
        image
        for image in series.images
        if image.syntax in _LOSSY or image.text("LossyImageCompression") == "01"
    ]
    if not lossy:
        return ()
    ratio = lossy[0].text("LossyImageCompressionRatio")
    cause = f"{len(lossy)} of {len(series.images)} files have lossy compression" + (
        f" (ratio {ratio})" if ratio else ""
    )
    step = "Use the original if possible: small structures may be lost."
    return (Finding(code="lossy-compression", path=str(path), cause=cause, next_step=step),)


def _rescaling(series: Series, path: Path, options: ReadOptions) -> tuple[Finding, ...]:
    """Check slope, intercept and the unit of the values.

    Raises:
        InputError: "not-hounsfield": the file states another unit; "bad-rescale": the slope is zero
            or slope or intercept is not finite, or they are missing in some images only.
    """
    planes = series.planes
    check_valid(planes)
    if options.values != "ct":
        return ()
    findings = [*check_stated(planes, path), *image_type_findings(series.images, path)]
    kinds = Counter(plane.rescale_type for plane in planes)
    # HU_MOD: Hounsfield units of a virtual monochromatic image; US: unspecified.
    other = sorted(set(kinds) - {"", "HU", "HU_MOD", "US"})
    if other:
        raise InputError(
            f"its values are {', '.join(other)} (Rescale Type), not Hounsfield units",
            path=path,
            code="not-hounsfield",
            next_step="Export the CT images of the same scan.",
        )
    if "US" in kinds:
        cause = "the unit of its values is unspecified (Rescale Type is US)"
        findings.append(Finding(code="unspecified-values", path=str(path), cause=cause))
    if any(image.text("PhotometricInterpretation") == "MONOCHROME1" for image in series.images):
        cause = "it is displayed inverted (MONOCHROME1); values are not affected"
        findings.append(Finding(code="monochrome1", path=str(path), cause=cause))
    return tuple(findings)


# ---- decoding ----------------------------------------------------------------------------------


def decode(
    planes: Sequence[Plane],
    images: Sequence[Image],
    shape: tuple[int, int],
    path: Path,
    options: ReadOptions,
) -> tuple[Tensor, np.dtype, tuple[Finding, ...]]:
    """Decode planes and rescale each with its own slope and intercept.

    Padding according to the header becomes air (-1024 HU) in CT and the lowest other value
    otherwise.

    Args:
        planes: in output order.
        images: their files.
        shape: (rows, columns) of each.
        path: the series, for messages.
        options: what the values mean.

    Returns:
        (1, planes, rows, columns), the stored data type, and findings.

    Raises:
        InputError: "bad-pixels": pixels are truncated or cannot be decoded.
    """
    image_of = {image.path: image for image in images}
    files = list(dict.fromkeys(plane.path for plane in planes))
    stored = np.result_type(*(_stored_type(image_of[file]) for file in files))
    raw = np.empty((len(planes), *shape), stored)
    limits = {file: _padding(image_of[file]) for file in files}
    padding = np.zeros(raw.shape, bool) if any(limits.values()) else None
    surplus: dict[Path, int] = {}
    indices_of: dict[Path, list[int]] = {file: [] for file in files}
    for k, plane in enumerate(planes):
        indices_of[plane.path].append(k)
    with GdcmProcess() as gdcm:
        for file, indices in indices_of.items():
            frames = [planes[k].frame for k in indices]
            surplus[file] = _decode_file(image_of[file], frames, raw, indices, gdcm)
            ends = limits[file]
            if padding is not None and ends is not None:
                for k in indices:
                    padding[k] = (raw[k] >= ends[0]) & (raw[k] <= ends[1])
    values = _rescaled(raw, planes, path)
    findings = _beyond(surplus, raw.size, image_of, path)
    if padding is not None:
        findings += _pad(values, torch.from_numpy(padding), path, options)
    return values[None], stored, findings


def _rescaled(raw: np.ndarray, planes: Sequence[Plane], path: Path) -> Tensor:
    """(planes, rows, columns), each with its own slope and intercept."""
    scales = [rescaling(plane) for plane in planes]
    if len(set(scales)) == 1:
        return scaled(raw, *scales[0], path)
    parts = [scaled(raw[k], *scale, path) for k, scale in enumerate(scales)]
    kind = torch.result_type(*_extremes(parts))
    return torch.stack([part.to(kind) for part in parts])


def _beyond(
    surplus: dict[Path, int], total: int, image_of: dict[Path, Image], path: Path
) -> tuple[Finding, ...]:
    """A finding if pixels have bits beyond Bits Stored."""
    files = [file for file, count in surplus.items() if count]
    if not files:
        return ()
    share = 100 * sum(surplus.values()) / total
    bits = image_of[files[0]].text("BitsStored")
    cause = (
        f"{share:.3g} % of its pixels exceed the {bits} bits that Bits Stored states, in "
        f"{len(files)} of {len(surplus)} files, first {files[0].name}; the bits above were ignored"
    )
    step = "If they are not an overlay, the header is wrong: export the original CT images."
    return (Finding(code="bits-above-stored", path=str(path), cause=cause, next_step=step),)


def _extremes(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Two of the tensors whose common data type can hold all of them."""
    by_width = sorted(parts, key=lambda t: (t.is_floating_point(), t.dtype.itemsize))
    return by_width[-1], max(parts, key=lambda t: t.dtype.itemsize)


def _stored_type(image: Image) -> np.dtype:
    bits, signed = _bits(image), number(image.fields, "PixelRepresentation") == 1
    return np.dtype(f"{'int' if signed else 'uint'}{bits}")


def _decode_file(
    image: Image, frames: Sequence[int], out: np.ndarray, indices: list[int], gdcm: GdcmProcess
) -> int:
    """Decode some frames of a file into out[indices].

    Returns:
        The number of pixels with bits beyond Bits Stored. These bits are ignored.
    """
    from pydicom.pixels.utils import iter_pixels
    from pydicom.uid import UID

    with reading(image.path):
        dataset = read_dataset(image.path)
        if not image.syntax:  # no file meta information: DICOM's default transfer syntax
            dataset.file_meta.TransferSyntaxUID = UID(_IMPLICIT)
    check_frames(dataset, image, out.shape[1:])
    count = 0
    try:
        with quiet():
            decoded = (
                gdcm.frames(image.path, frames)
                if image.syntax in _LOSSLESS_JPEG
                else iter_pixels(
                    dataset,
                    indices=frames,
                    raw=True,
                    correct_unused_bits=False,
                    decoding_plugin=_DECODERS.get(image.syntax, ""),
                )
            )
            for index, frame in zip(indices, decoded, strict=True):
                if frame.shape != out.shape[1:]:
                    raise ValueError(f"decoded to {frame.shape} pixels, not {out.shape[1:]}")
                out[index], beyond = _within_bits(frame, image)
                count += beyond
    except Exception as error:  # decoders raise exceptions of any class on damaged pixels
        # After pydicom's first line, which says nothing, there is one of each decoder.
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()[:200]
        raise InputError(
            f"its pixels cannot be decoded ({reason})",
            path=image.path,
            code="bad-pixels",
            next_step="The file is truncated or damaged: copy or export the series again.",
        ) from error
    return count


def _within_bits(frame: np.ndarray, image: Image) -> tuple[np.ndarray, int]:
    """The values within Bits Stored, and the number of pixels that have other bits above.

    Signed values may have zeros above instead of their sign. Then none of them is negative.

    Source: DICOM PS3.5, 8.1.1: the bits above High Bit belong to no pixel.
    """
    bits = int(image.text("BitsStored"))
    shift = 8 * frame.dtype.itemsize - bits
    if shift <= 0:
        return frame, 0
    kept = frame.astype(frame.dtype.newbyteorder("="))
    kept = (kept << shift) >> shift
    differs = kept != frame
    if frame.dtype.kind == "i" and not image.syntax.startswith(_JPEG_2000):
        differs &= bool((frame < 0).any()) | ((frame >> bits) != 0)
    return kept, int(differs.sum())


def _padding(image: Image) -> tuple[int, int] | None:
    """Lowest and highest stored value that is padding; None if the header states none.

    Source: DICOM PS3.3, C.7.5.1.1.2 (Pixel Padding Value and Pixel Padding Range Limit).
    """
    value = number(image.fields, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(image.fields, "PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None else limit)]
    info = np.iinfo(_stored_type(image))
    # Some writers store signed padding as unsigned, 63536 for -2000, and the reverse.
    ends = [(end - info.min) % 2**info.bits + info.min for end in ends]
    return min(ends), max(ends)


def _pad(values: Tensor, padding: Tensor, path: Path, options: ReadOptions) -> tuple[Finding, ...]:
    """Replace padding in place, unless it could be tissue."""
    count = int(padding.sum())
    if not count or options.values == "labels":
        return ()
    share = f"{100 * count / padding.numel():.1f} % of its pixels are padding"
    highest = float(values[padding].max())
    if options.values == "ct":
        if _PADDING_HU < highest <= _METAL_HU:
            cause = f"{share} by their stored value, but reach {highest:g} HU; they were kept"
            return (Finding(code="ambiguous-padding", path=str(path), cause=cause),)
        fill = checks.AIR_HU
    else:
        fill = float(values[~padding].min()) if count < padding.numel() else highest
    if bool((values[padding] == fill).all()):
        return ()
    values[padding] = fill
    cause = f"{share} and were set to {fill:g}"
    return (Finding(code="padding-replaced", path=str(path), cause=cause),)
