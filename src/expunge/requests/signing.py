"""Signatures of evidence: ed25519 keys as PEM files, and the DSSE envelope that in-toto's tools read.

Sources: DSSE v1 (github.com/secure-systems-lab/dsse), in-toto attestations v1 (github.com/in-toto/attestation).
"""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.errors import UserError
from expunge.system.disk import printable, write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD = "application/vnd.in-toto+json"
PUBLIC = ".pub"
PASSPHRASE = "EXPUNGE_KEY_PASSPHRASE"
"""Environment variable that encrypts a new private key and opens an encrypted one."""


class Unproven(ValueError):
    """A signature or an envelope that does not hold, in words."""


def make_keys(path: Path) -> str:
    """Write a new private key to `path` and its public one beside it (`path`.pub); returns the key's id.

    Raises `UserError` where either file is there, and without the package `cryptography`.
    """
    check()
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for file in (path, _public_path(path)):
        if os.path.lexists(file):
            raise UserError(f"{printable(file)} is there already and would be lost; give another --out.")
    key, word = Ed25519PrivateKey.generate(), _passphrase()
    how = s.BestAvailableEncryption(word) if word else s.NoEncryption()
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, how)
    write_whole(path, private.decode())
    write_whole(_public_path(path), public_pem(key.public_key()))
    return key_id(key.public_key())


def private_key(path: Path) -> "Ed25519PrivateKey":
    """The private key in a PEM file; `UserError` for what is none."""
    check()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), _passphrase())
    except TypeError:
        wrong = "has no passphrase; unset" if _passphrase() else "is encrypted; set"
        raise UserError(f"{printable(path)} {wrong} {PASSPHRASE}.") from None
    except ValueError:
        raise UserError(f"{printable(path)} is no private key that can be read ({PASSPHRASE} may be wrong); "
                        "expunge keys --out FILE makes one.") from None  # fmt: skip
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{printable(path)} is no ed25519 key; expunge keys --out FILE makes one.")
    return key


def public_key(pem: bytes, name: str) -> "Ed25519PublicKey":
    """The public key of a PEM text; `UserError` names `name` for what is none."""
    check()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{name} is no public ed25519 key; give the file that ends in {PUBLIC}.")
    return key


def read_public_key(path: Path) -> "Ed25519PublicKey":
    return public_key(_read(path), printable(path))


def public_pem(key: "Ed25519PublicKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def key_id(key: "Ed25519PublicKey") -> str:
    """SHA-256 of the key's 32 bytes, in hex."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def sign(payload: bytes, key: "Ed25519PrivateKey") -> str:
    """The DSSE envelope of a payload with one signature, as JSON."""
    return _envelope(payload, key_id(key.public_key()), key.sign(_encoded(payload)))


def signer(envelope: str) -> str:
    """The id of the key that an envelope names; `Unproven` for what is no envelope of one signature."""
    return _parsed(envelope)[1]


def verified(envelope: str, key: "Ed25519PublicKey") -> bytes:
    """The payload of an envelope that `key` signed; else `Unproven`, in words.

    The envelope must be, byte for byte, what `sign` writes: so no byte of it can be changed unseen.
    """
    from cryptography.exceptions import InvalidSignature

    payload, named, signature = _parsed(envelope)
    if named != key_id(key):
        raise Unproven(f"is signed by the key {named[:16]}…, not by {key_id(key)[:16]}…")
    try:
        key.verify(signature, _encoded(payload))
    except InvalidSignature:
        raise Unproven("has a signature that does not hold") from None
    if envelope != _envelope(payload, named, signature):
        raise Unproven("is not as it was written")
    return payload


def check() -> None:
    """Raise `UserError` without the package that signs."""
    try:
        import cryptography as _  # noqa: F401
    except ImportError:
        raise UserError("keys and signatures need the package cryptography; pip install 'expunge[requests]'.") from None


def _envelope(payload: bytes, key_id: str, signature: bytes) -> str:
    signed = [{"keyid": key_id, "sig": base64.b64encode(signature).decode()}]
    content = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD, "signatures": signed}
    return json.dumps(content, indent=1) + "\n"


def _parsed(envelope: str) -> tuple[bytes, str, bytes]:
    """(payload, key id, signature)"""
    try:
        content = json.loads(envelope)
        (entry,) = content["signatures"]
        payload, signature = (base64.b64decode(text, validate=True) for text in (content["payload"], entry["sig"]))
        named = entry["keyid"]
        assert isinstance(named, str)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
        raise Unproven("is no envelope with one signature") from None
    return payload, named, signature


def _encoded(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = PAYLOAD.encode()
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])


def _passphrase() -> bytes | None:
    return os.environ.get(PASSPHRASE, "").encode() or None


def _public_path(path: Path) -> Path:
    return path.with_name(path.name + PUBLIC)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{printable(path)} can't be read ({error.strerror}); give the file of a key.") from None
