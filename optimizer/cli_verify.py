"""The commands ``sign`` and ``verify``: whether an artifact is what was written, and by whom."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Adds both commands to a parser's subcommands."""
    sign = commands.add_parser("sign", help="sign an artifact with a private key")
    sign.add_argument("artifact", type=Path, help="an artifact folder")
    sign.add_argument("--key", required=True, type=Path, help="a private Ed25519 key (PEM)")
    sign.set_defaults(run=_sign)
    verify = commands.add_parser(
        "verify", help="check all of an artifact's files, and who signed them"
    )
    verify.add_argument("artifact", type=Path, help="an artifact folder")
    verify.add_argument("--key", type=Path, help="the public Ed25519 key (PEM) it is signed by")
    verify.set_defaults(run=_verify)


def _sign(arguments: argparse.Namespace) -> int:
    from .artifact.artifact import verify
    from .artifact.signing import sign

    # What is signed is what is there: nothing damaged or added may be vouched for.
    verify(arguments.artifact, complete=True)
    print(f"signed: {sign(arguments.artifact, arguments.key)}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from .artifact.artifact import verify

    for line in verify(arguments.artifact, key=arguments.key):
        print(line)
    return 0
