"""Names are data: how any text is shown, and what stands for it in files, in MLflow and in a flag.

Domains and classes may be named in any script and with any character. Whoever needs a name for a
file, an object's key or something in MLflow asks here, so that no name leads out of its folder and
no two texts come to the same.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from adu.errors import UserError

MAX_NAME_LENGTH = 80
HASH_LENGTH = 12

# What stands for itself. A name that ends as one with a hash does is given a hash of its own.
# No dot in a file name: what is called ``a.json`` would be in the way of the file of ``a``.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+-]*")
MLFLOW_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
HASHED = re.compile(rf"(.*-)?[0-9a-f]{{{HASH_LENGTH}}}")

SEPARATORS = "+,"
ESCAPE = "\\"

# They turn the text around them: what is read is then not what is written.
BIDI_CONTROLS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def shown(text: str) -> str:
    r"""A text as a person sees it: as it is, but on one line and without power over the terminal.

    Control characters, line ends and what is left of an unknown encoding are written as escapes.

    Example:
        >>> shown("[photo] 50%\n")
        '[photo] 50%\\n'
    """
    return "".join(_escaped(char) if _is_unsafe(char) else char for char in text)


def file_name(text: str) -> str:
    """A file name, or a part of an object's key, for any text.

    Plain names of up to 80 characters stand for themselves. Of any other text the readable ASCII
    part is kept, with a hash of the whole. Two texts never have one name (as far as 48 bits go).

    Example:
        >>> file_name("cartoon+photo")
        'cartoon+photo'
        >>> file_name("../café")
        'cafe-0b7813df628f'
    """
    return _safe(text, FILE_NAME)


def mlflow_name(text: str) -> str:
    """The same for the names of MLflow's metrics, parameters and models, which may hold less.

    Example:
        >>> mlflow_name("cartoon+photo")
        'cartoon_photo-477206adac2c'
    """
    return _safe(text, MLFLOW_NAME)


def forget_name(domains: Sequence[str]) -> str:
    r"""A forget set as one text: its domains joined by ``+``.

    A backslash stands before a ``+``, ``,`` or backslash that belongs to a domain's name, so two
    sets never have one name. It names studies and is shown; for files it goes through `file_name`.

    Example:
        >>> forget_name(["cartoon", "photo"])
        'cartoon+photo'
        >>> forget_name(["a+b"])
        'a\\+b'
    """
    return "+".join(re.sub(r"([\\+,])", r"\\\1", domain) for domain in domains)


def parse_forget_name(text: str) -> tuple[str, ...]:
    r"""The domains of a forget set as it is typed, joined by ``,`` or ``+``: undoes `forget_name`.

    A backslash takes the next character as it is.

    Raises:
        UserError: If a domain between two separators is empty, or nothing follows a backslash.

    Example:
        >>> parse_forget_name("cartoon,photo")
        ('cartoon', 'photo')
        >>> parse_forget_name("a\\+b")
        ('a+b',)
    """
    domains = [""]
    chars = iter(text)
    for char in chars:
        if char in SEPARATORS:
            domains.append("")
        elif char == ESCAPE:
            escaped = next(chars, None)
            if escaped is None:
                raise UserError(f"forget set '{shown(text)}': nothing follows its last backslash")
            domains[-1] += escaped
        else:
            domains[-1] += char
    if not all(domains):
        raise UserError(f"forget set '{shown(text)}': holds an empty name")
    return tuple(domains)


def _safe(text: str, plain: re.Pattern[str]) -> str:
    if len(text) <= MAX_NAME_LENGTH and plain.fullmatch(text) and not HASHED.fullmatch(text):
        return text
    # Whatever Python holds as text has bytes this way, also what it could not decode.
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:HASH_LENGTH]
    ascii_part = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", ascii_part).strip("._-")
    readable = readable[: MAX_NAME_LENGTH - HASH_LENGTH - 1]
    return f"{readable}-{digest}" if readable else digest


def _is_unsafe(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or ord(char) in BIDI_CONTROLS


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()
