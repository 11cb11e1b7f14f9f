"""Decode and rescale the pixels of DICOM images, and replace padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import Finding, InputError
from kidseg.io import checks
from kidseg.io.dicom_header import Image, Plane, number, quiet, read_dataset
from kidseg.io.dicom_series import Series
from kidseg.io.numbers import scaled
from kidseg.io.scan import ReadOptions

__all__ = ["check_pixels", "decode"]

_IMPLICIT = "1.2.840.10008.1.2"
_LOSSY = {
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
}
# Maximum compression ratio: a constant image in JPEG 2000, far beyond that of any patient.
_COMPRESSION = 10_000
# Padding in CT is below this value; all tissue, including lung, is above.
_PADDING_HU = -950.0


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
        if "ModalityLUTSequence" in image.header:
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
    return uid.is_encapsulated or uid.is_deflated


def _bits(image: Image) -> int:
    """Bits Allocated, if the bit layout is supported.

    Raises:
        InputError: "unsupported-type".
    """
    names = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    allocated, stored, high, signed = (number(image.header, name) for name in names)
    valid = allocated in (8, 16, 32) and stored is not None and 0 < stored <= (allocated or 0)
    if valid and signed in (0, 1) and high in (None, (stored or 0) - 1):
        return int(allocated or 0)
    raise InputError(
        f"its pixel format is not supported ({allocated} bits allocated, {stored} "
        f"stored, high bit {high}, pixel representation {signed})",
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
            or slope or intercept is not finite.
    """
    planes = [plane for image in series.images for plane in image.planes]
    for plane in planes:
        if plane.slope == 0 or not np.isfinite([plane.slope or 1, plane.intercept or 0]).all():
            raise InputError(
                f"its rescale slope {plane.slope:g} or intercept {plane.intercept} is invalid",
                path=plane.path,
                code="bad-rescale",
                next_step="The header is damaged: export the series again.",
            )
    if options.values != "ct":
        return ()
    findings = []
    missing = sum(plane.slope is None or plane.intercept is None for plane in planes)
    if missing:
        cause = (
            f"rescale slope or intercept is missing in {missing} of {len(planes)} images; 1 and 0 "
            "were used: stored values are assumed to be Hounsfield units"
        )
        findings.append(Finding(code="missing-rescale", path=str(path), cause=cause))
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
    if any("PERFUSION" in image.text("ImageType") for image in series.images):
        kind = series.images[0].text("ImageType")
        cause = f"it is a perfusion map (Image Type {kind}): values may not be Hounsfield units"
        findings.append(Finding(code="derived-values", path=str(path), cause=cause))
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
    stored = np.result_type(*(_stored_type(image_of[plane.path]) for plane in planes))
    raw = np.empty((len(planes), *shape), stored)
    indices_of: dict[Path, list[int]] = {}
    for k, plane in enumerate(planes):
        indices_of.setdefault(plane.path, []).append(k)
    padding = np.zeros(raw.shape, bool) if any(_padding(i) for i in images) else None
    for file, indices in indices_of.items():
        _decode_file(image_of[file], [planes[k].frame for k in indices], raw, indices)
        limits = _padding(image_of[file])
        if padding is not None and limits is not None:
            for k in indices:
                padding[k] = (raw[k] >= limits[0]) & (raw[k] <= limits[1])
    scales = [(1.0 if p.slope is None else p.slope, p.intercept or 0.0) for p in planes]
    if len(set(scales)) == 1:
        values = scaled(raw, *scales[0], path)
    else:
        parts = [scaled(raw[k], *scale, path) for k, scale in enumerate(scales)]
        kind = torch.result_type(*_extremes(parts))
        values = torch.stack([part.to(kind) for part in parts])
    findings = () if padding is None else _pad(values, torch.from_numpy(padding), path, options)
    return values[None], stored, findings


def _extremes(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Two of the tensors whose common data type can hold all of them."""
    by_width = sorted(parts, key=lambda t: (t.is_floating_point(), t.dtype.itemsize))
    return by_width[-1], max(parts, key=lambda t: t.dtype.itemsize)


def _stored_type(image: Image) -> np.dtype:
    bits, signed = _bits(image), number(image.header, "PixelRepresentation") == 1
    return np.dtype(f"{'int' if signed else 'uint'}{bits}")


def _decode_file(image: Image, frames: Sequence[int], out: np.ndarray, indices: list[int]) -> None:
    """Decode some frames of a file into out[indices].

    pydicom corrects signs and masks the bits beyond Bits Stored.
    """
    from pydicom.pixels.utils import iter_pixels
    from pydicom.uid import UID

    dataset = read_dataset(image.path)
    if not image.syntax:  # no file meta information: DICOM's default transfer syntax
        dataset.file_meta.TransferSyntaxUID = UID(_IMPLICIT)
    try:
        with quiet():
            for index, frame in zip(indices, iter_pixels(dataset, indices=frames), strict=True):
                if frame.shape != out.shape[1:]:
                    raise ValueError(f"decoded to {frame.shape} pixels, not {out.shape[1:]}")
                out[index] = frame
    except (
        ValueError, RuntimeError, AttributeError, KeyError, IndexError, TypeError, EOFError,
        NotImplementedError,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"its pixels cannot be decoded ({reason})",
            path=image.path,
            code="bad-pixels",
            next_step="The file is truncated or damaged: copy or export the series again.",
        ) from error


def _padding(image: Image) -> tuple[int, int] | None:
    """Lowest and highest stored value that is padding; None if the header states none.

    Source: DICOM PS3.3, C.7.5.1.1.2 (Pixel Padding Value and Pixel Padding Range Limit).
    """
    value = number(image.header, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(image.header, "PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None else limit)]
    info = np.iinfo(_stored_type(image))
    # Some writers store signed padding as unsigned, for example 63536 for -2000.
    ends = [end - 2**info.bits if end > info.max and info.min < 0 else end for end in ends]
    return min(ends), max(ends)


def _pad(values: Tensor, padding: Tensor, path: Path, options: ReadOptions) -> tuple[Finding, ...]:
    """Replace padding in place, unless it could be tissue."""
    count = int(padding.sum())
    if not count or options.values == "labels":
        return ()
    share = f"{100 * count / padding.numel():.1f} % of its pixels are padding"
    highest = float(values[padding].max())
    if options.values == "ct":
        if highest > _PADDING_HU:
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
