"""Image files: their heads, and whether the training can decode them."""

import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any, BinaryIO, NamedTuple, TypeVar
from unittest.mock import patch

import cv2
from mmcv.transforms import LoadImageFromFile
from mmengine.logging import print_log
from PIL import ExifTags, Image

from sb_mm.errors import FileFault, UserInputError, first_few, first_line
from sb_mm.files import cores

T = TypeVar('T')

REPLACE = 'replace it, or take its name out of the image list'
# Formats of which Pillow converts 16 bits to 8, and does not say so.
_DEPTH_UNTOLD = ('PPM', 'JPEG2000', 'AVIF')
# OpenCV 4's warps, which augmentations use, take no larger image.
_LONGEST_SIDE = 32_766
# More take gigabytes each time they are loaded.
MAX_MEGAPIXELS = 100


class ImageHeader(NamedTuple):
    """What the head of an image file says."""

    size: tuple[int, int]  # (width, height) of the stored image in pixels
    orientation: int  # EXIF's, 1 to 8; 1 shows the image as it is stored

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) of the image that a viewer turns by the tag."""
        return self.size[::-1] if self.orientation >= 5 else self.size

    def turn_box(self, box: Sequence[int], to_shown: bool) -> list[int]:
        """Turn a box as a viewer turns the stored image, or back from it.

        It is (x1, y1, x2, y2), the first and last pixels, counted from 0.
        """
        x1, y1, x2, y2 = box
        swaps = self.orientation >= 5
        if swaps and to_shown:
            x1, y1, x2, y2 = y1, x1, y2, x2
        last_x, last_y = (side - 1 for side in self.shown_size)
        if self.orientation in (2, 3, 6, 7):
            x1, x2 = last_x - x2, last_x - x1
        if self.orientation in (3, 4, 7, 8):
            y1, y2 = last_y - y2, last_y - y1
        return [y1, x1, y2, x2] if swaps and not to_shown else [x1, y1, x2, y2]


def reader_of(transforms: Sequence) -> LoadImageFromFile:
    """Return the transform of a pipeline that reads images from files."""
    readers = (t for t in transforms if isinstance(t, LoadImageFromFile))
    return next(readers, LoadImageFromFile())


def open_regular(path: str, remedy: str) -> BinaryIO:
    """Open a file; a pipe or device, which might never end, is refused.

    Raises:
        FileFault: It is none, or cannot be opened; says ``remedy``.
    """
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return open(path, 'rb')
    except (OSError, ValueError) as error:  # or no path, as with \0
        raise cannot_read(path, error, remedy) from None
    raise FileFault(path, 'is a folder, pipe or device, not a file', remedy)


def cannot_read(path: str, error: Exception, remedy: str) -> FileFault:
    """Return the fault of a file or folder that the system refuses."""
    reason = getattr(error, 'strerror', None) or first_line(error)
    return FileFault(path, f'cannot be read ({reason})', remedy)


def read_header(
    path: str, *, deep: bool = False, max_megapixels: float = MAX_MEGAPIXELS
) -> ImageHeader:
    """Read the head of an image file.

    Raises:
        FileFault: The file is no image, larger than ``max_megapixels``, too
            long for OpenCV, or has more than 8 bits a channel, of which
            loading keeps 8, and these are not wanted (``deep``).
    """
    with open_regular(path, REPLACE) as file:
        try:
            with Image.open(file) as image:
                size, orientation = image.size, _orientation(image)
                is_deep = image.mode[0] in 'IF' or ';16' in str(image.tile)
                is_untold = image.format in _DEPTH_UNTOLD
        except Exception as error:  # Pillow's readers raise many types
            raise _unreadable(path, error) from None
    width, height = size
    if max(size) > _LONGEST_SIDE or width * height > max_megapixels * 1e6:
        raise FileFault(
            path,
            f'is an image of {width}x{height} pixels',
            f'cut or shrink it to sides up to {_LONGEST_SIDE}, for OpenCV, '
            f'and to {max_megapixels:g} megapixels, or raise max_megapixels '
            'of VOCDevkitDataset; --no-check leaves this out of others',
        )
    if not deep and (is_deep or (is_untold and _is_deep_in_opencv(path))):
        raise FileFault(
            path,
            'has more than 8 bits a channel, of which the upper 8 are read',
            "convert it to 8 bits, where 12 are used with ImageMagick's "
            '`mogrify -level 0,4095 -depth 8 FILE`',
        )
    return ImageHeader(size, orientation)


def decode(path: str, load: Callable[[dict], dict | None]) -> tuple[int, int]:
    """Return the (width, height) that the training's transform loads.

    Raises:
        FileFault: ``load`` cannot, or the file is cut off.
    """
    with open_regular(path, REPLACE) as file:
        is_jpeg = file.read(2) == b'\xff\xd8'
        file.seek(max(file.seek(0, os.SEEK_END) - 32, 0))
        cut_off = is_jpeg and b'\xff\xd9' not in file.read()  # its end mark
    try:
        image = (load(dict(img_path=path)) or {}).get('img')
        if cut_off:  # OpenCV 4 fills the rest with grey
            with Image.open(path) as file:
                file.load()
    except Exception as error:  # of any decoder
        raise _unreadable(path, error) from None
    return (0, 0) if image is None else image.shape[1::-1]


def collect(function: Callable[[Any], T], items: Sequence) -> list[T]:
    """Call a function of each file, several at once.

    Raises:
        UserInputError: Of all files with the remedy of the first fault.
    """

    def call(item: Any) -> T | FileFault:
        try:
            return function(item)
        except FileFault as fault:
            return fault

    # Large images are left to our own limit, which can be lifted.
    no_limit = patch.object(Image, 'MAX_IMAGE_PIXELS', None)
    # OpenCV decodes, and files are waited for, outside of Python's lock.
    with no_limit, ThreadPool(min(2 * cores(), 16)) as pool:
        results = list(pool.imap(call, items, chunksize=8))
    if faults := [item for item in results if isinstance(item, FileFault)]:
        remedy = faults[0].remedy
        same = [f'{f.path} {f.fault}' for f in faults if f.remedy == remedy]
        raise UserInputError(f'{first_few(same)}: {remedy}.')
    return results


def warn_of(notes: Iterable[tuple[str, str]]) -> None:
    """Say of each kind of note, given with its file, how many there are."""
    files: dict[str, list[str]] = {}
    for text, path in notes:
        files.setdefault(text, []).append(path)
    for text, paths in files.items():
        named = first_few(list(dict.fromkeys(paths)))
        print_log(f'{len(paths)} {text}: {named}.', 'current', logging.WARNING)


def _orientation(image: Image.Image) -> int:
    # without the first test Pillow decodes a whole PNG to look for EXIF
    exif = image.getexif() if 'exif' in image.info else {}
    tag = exif.get(ExifTags.Base.Orientation, 1)
    return tag if tag in range(1, 9) else 1


def _is_deep_in_opencv(path: str) -> bool:
    image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    return image is not None and image.dtype.itemsize > 1


def _unreadable(path: str, error: Exception) -> FileFault:
    # These say no more than that, and repeat the path.
    plain = isinstance(error, (AssertionError, Image.UnidentifiedImageError))
    reason = '' if plain else f' ({first_line(error)})'
    return FileFault(path, f'is not a readable image{reason}', REPLACE)
