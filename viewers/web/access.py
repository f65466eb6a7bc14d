"""Who may do what: tokens of two roles, names under which the server may be asked, and pages that may ask it."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

Role: TypeAlias = Literal["view", "operate"]

LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Access:
    """The tokens of one web server."""

    view: str | None
    """Who has it may look; None: whoever reaches the server."""
    operate: str | None
    """Who has it may look and steer; None: nobody steers by the web."""
    loopback: bool = True
    """Whether the server listens on this machine alone: it is then asked under no name but this machine's own."""

    @staticmethod
    def to(host: str, *, steering: bool = False, tokens: Mapping[str, str] | None = None) -> Access:
        """For a server that listens on this interface, with these tokens by role, or new ones."""
        loopback, held = is_local(host), tokens or {role: secrets.token_urlsafe(16) for role in ("view", "operate")}
        return Access(None if loopback else held["view"], held["operate"] if steering else None, loopback)

    @property
    def cookie(self) -> str:
        """Name of the cookie. Cookies do not tell ports apart: so each server has a name of its own."""
        tokens = f"{self.view} {self.operate}".encode()
        return f"ptystream_{hashlib.sha256(tokens).hexdigest()[:12]}"

    def role(self, asking: HTTPConnection) -> Role | None:
        """By the token in the address, in `Authorization: Bearer`, or in the cookie that was set from the address; the first of
        them that is there counts. None: may not even look."""
        given = token_of(asking)
        if given is not None:
            return self._of(given)
        role = self._of(asking.cookies.get(self.cookie, ""))
        return "view" if role is None and self.view is None else role

    def refusal(self, asking: HTTPConnection) -> str:
        """Why nothing may be asked so, whoever asks; empty where it may.

        A server without a token must not be asked under a foreign name: a page of another site could have its own name lead
        here (DNS rebinding). One with a token is guarded by it, since a browser has its cookie under one name only.
        """
        if self.loopback and not is_local(_host(asking.headers.get("host", ""))):
            return "This server is for its own machine: ask it as localhost or 127.0.0.1."
        return ""

    def _of(self, token: str) -> Role | None:
        for role, expected in (("operate", self.operate), ("view", self.view)):
            if expected is not None and secrets.compare_digest(token.encode(), expected.encode()):
                return "operate" if role == "operate" else "view"
        return None


def token_of(asking: HTTPConnection) -> str | None:
    """What was given beside the cookie."""
    scheme, _, bearer = asking.headers.get("authorization", "").partition(" ")
    return asking.query_params.get("token") or (bearer.strip() if scheme.lower() == "bearer" else None)


def same_origin(asking: HTTPConnection) -> bool:
    """Whether a page of this server asks, or no page at all; pages of other ports and sites do not."""
    if asking.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = asking.headers.get("origin")
    try:
        return origin is None or (origin != "null" and urlsplit(origin).netloc == asking.headers.get("host"))
    except ValueError:
        return False


def is_local(host: str) -> bool:
    """Whether a name or address can only be this machine's own."""
    if host in LOCAL:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host(header: str) -> str:
    """`[::1]:80`, `localhost:80` or `localhost` without the port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
