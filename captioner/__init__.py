"""captioner: a photo in, a sentence out, and for every word the place the model looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Caption", "Captioner", "CaptionerError", "__version__"]

if TYPE_CHECKING:
    from captioner.api import Caption, Captioner
    from captioner.errors import CaptionerError


def __getattr__(name: str) -> Any:
    """Load the public names when they are first used: ``import captioner`` itself is instant."""
    if name in ("Caption", "Captioner"):
        from captioner import api

        return getattr(api, name)
    if name == "CaptionerError":
        from captioner.errors import CaptionerError

        return CaptionerError
    raise AttributeError(f"module 'captioner' has no attribute {name!r}")
