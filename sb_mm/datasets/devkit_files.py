"""Files of a devkit: its lists of names, and what lies under a name."""

import os
from collections.abc import Sequence
from unicodedata import normalize

from sb_mm.errors import UserInputError

from .images import open_regular


def nfc(text: str) -> str:
    """Return the form of Unicode in which names are compared."""
    return normalize('NFC', text)


class FileIndex:
    """Finds files by their name without suffix, in any form of Unicode.

    Each folder is listed once: a look-up a file and suffix is slow for
    16,551 images on a network drive.
    """

    def __init__(self, folder: str, suffixes: Sequence[str]) -> None:
        self._folder = folder
        self._suffixes = suffixes
        self._listed: dict[str, dict[str, list[str]]] = {}

    def __getitem__(self, name: str) -> list[str]:
        folder, stem = os.path.split(name)
        forms = (folder, nfc(folder), normalize('NFD', folder))
        found = (self._find(form, stem) for form in forms)
        return next(filter(None, found), [])

    def _find(self, sub_folder: str, stem: str) -> list[str]:
        if sub_folder not in self._listed:
            folder = os.path.join(self._folder, sub_folder)
            self._listed[sub_folder] = self._list(folder)
        listed = self._listed[sub_folder]
        return listed.get(stem) or listed.get(nfc(stem), [])

    def _list(self, folder: str) -> dict[str, list[str]]:
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        except OSError as error:
            raise UserInputError(
                f'{folder} cannot be read ({error.strerror}): correct its '
                'permissions.'
            ) from None
        found: dict[str, list[str]] = {}
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in self._suffixes:
                found.setdefault(stem, []).append(os.path.join(folder, name))
        return {nfc(stem): paths for stem, paths in found.items()} | found


def choose(paths: Sequence[str], filename: str) -> tuple[str, list[str]]:
    """Return the path that ``<filename>`` names, or the first, and notes."""
    names = {path: nfc(os.path.basename(path)) for path in paths}
    wanted = nfc(filename)
    same = [p for p in paths if names[p].lower() == wanted.lower()]
    exact = [p for p in same if names[p] == wanted]
    note = ['twin'] if len(paths) > 1 and not same else []
    return (exact or same or paths)[0], note


def read_list(path: str) -> list[str]:
    """Return the lines of an image list that are not blank.

    Raises:
        UserInputError: It cannot be read, is empty or not UTF-8.
    """
    remedy = 'give a text file with one image name a line'
    try:
        with open_regular(path, remedy) as file:
            lines = file.read().decode('utf-8-sig').splitlines()
    except UnicodeDecodeError:
        raise UserInputError(
            f'The image list {path} is not UTF-8 text: save it as UTF-8.'
        ) from None
    if names := [line.strip() for line in lines if line.strip()]:
        return names
    raise UserInputError(
        f'The image list {path} is empty: write one image name a line, '
        'without .jpg.'
    )
