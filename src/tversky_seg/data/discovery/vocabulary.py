"""Words in the names of files and folders, and what they say about an image."""

from __future__ import annotations

import re

_MODALITIES = {
    "FLAIR": ("flair", "t2flair", "flair3d"),
    "T1": ("t1", "t1w", "t1n", "mprage", "t1mprage"),
    "T1C": ("t1c", "t1ce", "t1gd", "t1gado", "t1post", "t1ks", "t1wks", "gado", "gd"),
    "T2": ("t2", "t2w", "t2star", "t2s"),
    "PD": ("pd", "pdw", "dp"),
    "DIR": ("dir",),
    "SWI": ("swi",),
    "DWI": ("dwi",),
    "ADC": ("adc",),
    "CT": ("ct", "cta"),
    "PET": ("pet", "fdg"),
}
"""Column -> words, in small letters."""

_LABEL_WORDS = (
    "annotation",
    "consensus",
    "gold",
    "groundtruth",
    "gt",
    "lesion",
    "lesions",
    "manual",
    "truth",
)
_LABEL_ENDS = ("mask", "masks", "seg", "segmentation", "label", "labels")
_BRAIN_WORDS = ("brain", "bet", "skull")
_LABEL_FOLDER = re.compile(
    r"(.*[_-])?(labels?(t[rs])?|masks?|segs?|segmentations?|gt|ground_?truth|annotations?|lesions)",
    re.IGNORECASE,
)
_IMAGE_FOLDER = re.compile(r"(images?|imgs?|volumes?|scans?)(t[rs])?", re.IGNORECASE)
_PLAIN_FOLDER = ("anat", "nifti", "nii", "mri")
_SESSION = re.compile(
    r"(ses|session|visit|v|tp|time|timepoint|t|m|y|scan|exam|baseline|follow|fu)[-_]?\w{0,3}\d*"
    r"|\d{1,2}|(19|20)\d{6}|(19|20)\d\d-\d\d-\d\d",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"(sub|subject|patient|pat|p)[-_]?\w*\d\w*", re.IGNORECASE)
_ENDS_IN_SESSION = re.compile(
    r"(.+?)[_-]((?:ses|session|visit|v|tp|time|timepoint|scan|exam)[-_]?\d+)", re.IGNORECASE
)
_WORD = re.compile(r"[A-Za-z0-9]+")
# As in T1_to_FLAIR and T1_reg_FLAIR, which are T1.
_TARGET_OF_REGISTRATION = ("to", "reg", "2")


def read_stem(stem: str) -> tuple[str | None, str]:
    """Read the column off the name of a file, and what stands before its word.

    "sub01_T1_seg" -> ("label", "sub01_T1"); "P14_T2_FLAIR" -> ("FLAIR", "P14_T2").

    Returns:
        The column, None where no word tells; and the beginning of the name, all of it then.
    """
    words = list(_WORD.finditer(stem))
    for number, word in enumerate(words):
        text = word.group().lower()
        after = words[number + 1].group().lower() if number + 1 < len(words) else ""
        # Before labels, since a brain mask has their word, too.
        if text == "brainmask" or (text in _BRAIN_WORDS and after == "mask"):
            return "brain_mask", _before(stem, _first_image_word(words, number))
    for word in words:
        text = word.group().lower()
        # Before modalities, since masks often bear the name of their image.
        if text in _LABEL_WORDS or text.endswith(_LABEL_ENDS):
            return "label", _before(stem, word)
    found: tuple[str | None, str] = (None, stem)
    for word in words:
        text = word.group().lower()
        # What an image was registered to is another image.
        is_target = text in _TARGET_OF_REGISTRATION or text.startswith("regto")
        if is_target and found[0] is not None:
            break
        column = _modality(text)
        if column is not None:
            found = (column, _before(stem, word))
    return found


def without_modality(prefix: str) -> str:
    """Take a modality off the end of a beginning: "sub01_T1" -> "sub01"."""
    words = list(_WORD.finditer(prefix))
    if words and _modality(words[-1].group().lower()) is not None:
        return _before(prefix, words[-1])
    return prefix


def column_of_folder(folder: str) -> str | None:
    """Return the column that the name of a folder tells: labelsTr -> label, T1 -> T1."""
    if _LABEL_FOLDER.fullmatch(folder):
        return "label"
    return _modality(folder.lower())


def says_nothing(folder: str) -> bool:
    """Tell whether a folder holds images or labels of all cases, and names none of them."""
    is_plain = folder.lower() in _PLAIN_FOLDER
    return is_plain or bool(_IMAGE_FOLDER.fullmatch(folder) or _LABEL_FOLDER.fullmatch(folder))


def is_session(word: str) -> bool:
    """Tell whether a word may name a session: ses-1, T2, baseline, 20190412, 2."""
    return _SESSION.fullmatch(word) is not None


def is_subject(word: str) -> bool:
    """Tell whether a word surely names a subject: sub-01, patient07, P14."""
    return _SUBJECT.fullmatch(word) is not None


def part_session(name: str) -> tuple[str, str | None]:
    """Part "sub01_ses2" into "sub01" and "ses2"; without a session the second is None."""
    found = _ENDS_IN_SESSION.fullmatch(name)
    return (name, None) if found is None else (found[1], found[2])


def _modality(word: str) -> str | None:
    for column, words in _MODALITIES.items():
        if word in words:
            return column
    # As in AXFLAIR; shorter words would be found in names of people and places.
    for long_word, column in (("flair", "FLAIR"), ("mprage", "T1")):
        if word.endswith(long_word):
            return column
    return None


def _first_image_word(words: list[re.Match[str]], stop: int) -> re.Match[str]:
    """Return the modality just before a brain mask's words, or else their first."""
    if stop > 0 and _modality(words[stop - 1].group().lower()) is not None:
        return words[stop - 1]
    return words[stop]


def _before(stem: str, word: re.Match[str]) -> str:
    return stem[: word.start()].rstrip("_-. ")
