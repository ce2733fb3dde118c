"""What kind of image a file is: by its first bytes, or by what its name claims."""

import re
from pathlib import PurePath

HEAD_BYTES = 132
"""How much of a file :func:`find_format` wants to see."""

_READABLE = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "WebP": rb"RIFF.{4}WEBP",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "PNM": rb"P[1-6]\s+[#\d]|P7\n",
    "Sun raster": rb"\x59\xa6\x6a\x95",
}
_UNREADABLE = {
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "JPEG XR": rb"II\xbc[\0\x01]",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?(?:RADIANCE|RGBE)",
    "PFM": rb"P[Ff]\n",
    "DICOM": rb".{128}DICM",
    "FITS": rb"SIMPLE  =",
    "Photoshop": rb"8BPS\0[\x01\x02]",
    "GIMP": rb"gimp xcf",
    "QOI": rb"qoif",
    "DDS": rb"DDS \x7c",
    "BPG": rb"BPG\xfb",
    "raw camera": rb"IIR[OS]|MMOR|IIU\0|FUJIFILMCCD-RAW|\0MRM|FOVb",
}
_FORMATS = {name: re.compile(pattern, re.DOTALL) for name, pattern in {**_READABLE, **_UNREADABLE}.items()}
_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIF": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"miaf"},
    "raw camera": {b"crx "},
}
"""Brands in the first box of the file format that MP4 videos have too."""
READABLE_FORMATS = frozenset({*_READABLE, "AVIF"})
"""Formats that OpenCV decodes to 8 or 16 bits, all of them in its newest release."""

_CLAIMS = frozenset(
    f".{suffix}"
    for suffix in (
        "png apng jpg jpeg jpe jfif jif jfi jps mpo bmp dib rle tif tiff btf tf8 bigtiff gif webp jp2 j2k j2c jpc jpf jpx jpm pgm ppm pbm "
        "pnm pam ras sr sun avif avifs heic heics heif heifs hif jxl jxr wdp hdp jls exr hdr rgbe pic pfm dcm dicom fits fit fts psd psb "
        "xcf qoi dds bpg flif tga pcx ico cur xbm xpm raw dng cr2 cr3 crw nef nrw arw srf sr2 srw orf rw2 rwl raf pef 3fr fff iiq erf mrw "
        "kdc dcr k25 x3f mef mos bay"
    ).split()
)


def find_format(head: bytes) -> str | None:
    """Return the name of the image format that a file begins like, None if it is none of those known.

    Args:
        head: The first :data:`HEAD_BYTES` of the file, or all of it.

    Example:
        >>> find_format(b"GIF89a"), find_format(b"plain text")
        ('GIF', None)
    """
    if head[4:8] == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}
        return next((name for name, known in _BRANDS.items() if known & brands), None)
    return next((name for name, pattern in _FORMATS.items() if pattern.match(head)), None)


def claims_to_be_image(path: PurePath) -> bool:
    """Return whether a file's name ends like an image's, also of a kind that cannot be read."""
    return path.suffix.lower() in _CLAIMS
