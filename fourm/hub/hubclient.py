"""The HTTP client of `huggingface_hub`, after a check of the environment variables and files that it reads.

With a wrong one, the client itself fails in many ways: at import, when a session is opened, or by waiting.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fourm import __version__
from fourm.data.opening import open_file, read_bytes
from fourm.errors import MissingError, UsageError, printable

LOG_IN = "give a token with HF_TOKEN or `hf auth login`"
MAX_TOKEN_BYTES = 1 << 20
_ADDRESSES = ("HF_ENDPOINT", "FOURM_GITHUB_ENDPOINT")
_SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_TOKEN_PATH")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY",
            "no_proxy")  # fmt: skip
# Files that the client reads without a limit, by the names of its constants.
_FILES = ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH")


def check_variables() -> None:
    """Refuse variables with which the client cannot be imported or used; delete those that are empty."""
    for name in (*_ADDRESSES, *_SECONDS, *_FOLDERS, *_CERTIFICATES):
        if not os.environ.get(name, "set").strip():
            del os.environ[name]
    for name in _SECONDS:
        if not re.fullmatch(r"\s*[0-9]{1,6}\s*", text := os.environ.get(name, "0"), re.ASCII):
            raise UsageError(f"{name}: '{printable(text)}' is not a whole number of seconds")
    for name in _ADDRESSES:
        if not _is_address(text := os.environ.get(name, "https://huggingface.co")):
            raise UsageError(
                f"{name}: '{printable(text)}' is no address of a server, such as https://huggingface.co"
            )


def open_session() -> Any:
    """The client's session; MissingError names the variable that prevents opening it."""
    from huggingface_hub import get_session

    try:
        if (path := os.environ.get("SSL_CERT_FILE")) is not None:
            open_file(Path(path)).close()
        return get_session()
    except OSError as error:
        raise MissingError(
            f"nothing can be fetched with {_settings(_certificates())}: {error.strerror or error}; name a "
            "file of certificates, or unset it"
        ) from error
    except ImportError as error:
        raise MissingError(
            f"nothing can be fetched with {_settings(_PROXIES)}: SOCKS proxies need another package, which "
            "`pip install httpx[socks]` installs"
        ) from error
    except Exception as error:  # ValueError, or the client's own for a proxy that it cannot parse
        raise MissingError(
            f"nothing can be fetched with {_settings(_PROXIES)}: {printable(str(error))}; a proxy is written "
            "as http://HOST:PORT or socks5://HOST:PORT"
        ) from error


def token_headers() -> dict[str, str]:
    """HTTP headers: the user's token, if there is one, and the user agent."""
    from huggingface_hub import __version__ as client_version
    from huggingface_hub import constants, get_token

    for path in (Path(getattr(constants, name)) for name in _FILES if hasattr(constants, name)):
        try:
            read_bytes(path, MAX_TOKEN_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"{path}: the Hub's client cannot read it ({error.strerror})") from None
    # Not the client's own function for headers: it makes a request and reads the answer without a limit.
    headers = {"user-agent": f"fourm/{__version__}; hf_hub/{client_version}"}
    try:
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        (token or "").encode("ascii")
    except UnicodeError:
        raise UsageError(f"the token of the Hub holds a character that no token has; {LOG_IN}") from None
    return {**headers, **({"authorization": f"Bearer {token}"} if token else {})}


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").encode("idna")
        return bool(host) and parts.scheme in ("http", "https") and parts.port != 0 and " " not in text
    except ValueError:  # a port above 65535, an unmatched bracket, a label that is too long
        return False


def _certificates() -> tuple[str, ...]:
    """The variables for certificates that are in effect: the client ignores SSL_CERT_DIR if a file is set."""
    passed_over = "SSL_CERT_DIR" if "SSL_CERT_FILE" in os.environ else ""
    return tuple(name for name in _CERTIFICATES if name != passed_over)


def _settings(names: tuple[str, ...]) -> str:
    """Those of the variables that are set, with their values; a proxy's user and password are left out."""
    found = {name: re.sub(r"//[^/@]*@", "//", os.environ[name]) for name in names if os.environ.get(name)}
    return ", ".join(f"{name}={printable(text)}" for name, text in found.items()) or "this installation"
