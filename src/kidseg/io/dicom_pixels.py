"""The pixels of DICOM images: decoded, rescaled, padding made air."""

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
# The most that a picture is compressed by: a constant one by JPEG 2000, far beyond any patient.
_COMPRESSION = 10_000
# What counts as padding in CT: no tissue, lung included, lies below.
_PADDING_HU = -950.0


def check_pixels(
    series: Series, shape: tuple[int, int], path: Path, options: ReadOptions
) -> tuple[Finding, ...]:
    """Before anything is decoded: can it be, does it fit in memory, what is to be said about it?

    Raises:
        InputError: "undecodable-syntax", "unsupported-type", "modality-lut", "not-hounsfield",
            "absurd-size".
        ResourceError: "not-enough-memory".
    """
    rows, columns = shape
    for image in series.images:
        _check_syntax(image)
        bits = _bits(image)
        packed = _is_packed(image.syntax)
        checks.check_memory(
            rows * columns * len(image.planes) * bits // 8,
            image.path,
            held_bytes=image.path.stat().st_size * (_COMPRESSION if packed else 1),
            limit_bytes=options.memory_limit_bytes,
        )
        if "ModalityLUTSequence" in image.header:
            raise InputError(
                "its values are scaled by a table (Modality LUT)",
                path=image.path,
                code="modality-lut",
                next_step="Export the original CT images, in Hounsfield units.",
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


def _is_packed(syntax: str) -> bool:
    from pydicom.uid import UID

    uid = UID(syntax or _IMPLICIT)
    return uid.is_encapsulated or uid.is_deflated


def _bits(image: Image) -> int:
    """Bits Allocated, if it is a layout of bits that can be read.

    Raises:
        InputError: "unsupported-type".
    """
    names = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
    allocated, stored, high, signed = (number(image.header, name) for name in names)
    sound = allocated in (8, 16, 32) and stored is not None and 0 < stored <= (allocated or 0)
    if sound and signed in (0, 1) and high in (None, (stored or 0) - 1):
        return int(allocated or 0)
    raise InputError(
        f"its pixels are of a type that cannot be read ({allocated} bits allocated, {stored} "
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
    cause = f"{len(lossy)} of {len(series.images)} files underwent lossy compression" + (
        f" (ratio {ratio})" if ratio else ""
    )
    step = "Prefer the original: small structures may be lost."
    return (Finding(code="lossy-compression", path=str(path), cause=cause, next_step=step),)


def _rescaling(series: Series, path: Path, options: ReadOptions) -> tuple[Finding, ...]:
    """What is to be said about slope, intercept and the kind of value.

    Raises:
        InputError: "not-hounsfield": the file says that its values are something else;
            "bad-rescale": a slope or intercept that is no number.
    """
    planes = [plane for image in series.images for plane in image.planes]
    for plane in planes:
        if plane.slope == 0 or not np.isfinite([plane.slope or 1, plane.intercept or 0]).all():
            raise InputError(
                f"its rescale slope is {plane.slope:g} and intercept {plane.intercept}",
                path=plane.path,
                code="bad-rescale",
                next_step="The header is damaged: export the series again.",
            )
    if options.values != "ct":
        return ()
    findings = []
    lost = sum(plane.slope is None or plane.intercept is None for plane in planes)
    if lost:
        cause = (
            f"{lost} of {len(planes)} images state no rescale slope or intercept; 1 and 0 were "
            "taken, so that stored values are Hounsfield units"
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
        cause = f"it is a perfusion map (Image Type {kind}): its values may be no Hounsfield units"
        findings.append(Finding(code="derived-values", path=str(path), cause=cause))
    if "US" in kinds:
        cause = "it does not say that its values are Hounsfield units (Rescale Type is US)"
        findings.append(Finding(code="unspecified-values", path=str(path), cause=cause))
    if any(image.text("PhotometricInterpretation") == "MONOCHROME1" for image in series.images):
        cause = "it is to be shown inverted (MONOCHROME1), which changes no value"
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
    """The values of planes, rescaled each with its own slope and intercept.

    Pixels that the header calls padding become air (-1024 HU) in CT, the lowest other value
    elsewhere.

    Args:
        planes: in the order wanted.
        images: their files.
        shape: (rows, columns) of each.
        path: of the series, for messages.
        options: what the values mean.

    Returns:
        (1, planes, rows, columns), the type that they are stored in, and findings.

    Raises:
        InputError: "bad-pixels": pixels that are truncated or cannot be decoded.
    """
    of = {image.path: image for image in images}
    stored = np.result_type(*(_stored_type(of[plane.path]) for plane in planes))
    raw = np.empty((len(planes), *shape), stored)
    where: dict[Path, list[int]] = {}
    for k, plane in enumerate(planes):
        where.setdefault(plane.path, []).append(k)
    padding = np.zeros(raw.shape, bool) if any(_padding(i) for i in images) else None
    for file, places in where.items():
        _decode_file(of[file], [planes[k].frame for k in places], raw, places)
        limits = _padding(of[file])
        if padding is not None and limits is not None:
            for k in places:
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
    """Two of the tensors whose common type holds all of them."""
    by_width = sorted(parts, key=lambda t: (t.is_floating_point(), t.dtype.itemsize))
    return by_width[-1], max(parts, key=lambda t: t.dtype.itemsize)


def _stored_type(image: Image) -> np.dtype:
    bits, signed = _bits(image), number(image.header, "PixelRepresentation") == 1
    return np.dtype(f"{'int' if signed else 'uint'}{bits}")


def _decode_file(image: Image, frames: Sequence[int], out: np.ndarray, places: list[int]) -> None:
    """Decode some frames of a file into out[places].

    pydicom corrects signs and the bits beyond Bits Stored.
    """
    from pydicom.pixels.utils import iter_pixels
    from pydicom.uid import UID

    dataset = read_dataset(image.path)
    if not image.syntax:  # a data set without a head: DICOM's default, or pydicom could not read it
        dataset.file_meta.TransferSyntaxUID = UID(_IMPLICIT)
    try:
        with quiet():
            for place, frame in zip(places, iter_pixels(dataset, indices=frames), strict=True):
                if frame.shape != out.shape[1:]:
                    raise ValueError(f"decoded to {frame.shape} pixels, not {out.shape[1:]}")
                out[place] = frame
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
    """Least and greatest stored value that is padding, None if the file names none.

    Source: DICOM PS3.3, C.7.5.1.1.2 (Pixel Padding Value and Pixel Padding Range Limit).
    """
    value = number(image.header, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(image.header, "PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None else limit)]
    info = np.iinfo(_stored_type(image))
    # Signed padding is at times written with the unsigned type, as 63536 for -2000.
    ends = [end - 2**info.bits if end > info.max and info.min < 0 else end for end in ends]
    return min(ends), max(ends)


def _pad(values: Tensor, padding: Tensor, path: Path, options: ReadOptions) -> tuple[Finding, ...]:
    """Overwrite padding in place, unless it could be tissue."""
    count = int(padding.sum())
    if not count or options.values == "labels":
        return ()
    share = f"{100 * count / padding.numel():.1f} % of its pixels are padding"
    highest = float(values[padding].max())
    if options.values == "ct":
        if highest > _PADDING_HU:
            cause = f"{share} by their stored value, but up to {highest:g} HU; they were kept"
            return (Finding(code="ambiguous-padding", path=str(path), cause=cause),)
        fill = checks.AIR_HU
    else:
        fill = float(values[~padding].min()) if count < padding.numel() else highest
    if bool((values[padding] == fill).all()):
        return ()
    values[padding] = fill
    cause = f"{share} and were set to {fill:g}"
    return (Finding(code="padding-replaced", path=str(path), cause=cause),)
