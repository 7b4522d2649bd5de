from __future__ import annotations

from anchorlm.records import UserError

HUB = "hf://datasets/"
"""How the name of a file in a data set of the Hugging Face Hub begins."""


def fetched(source: str) -> str:
    """The local copy of `hf://datasets/ORG/NAME[@REVISION]/PATH`. Any other source as it is.

    Raises:
        UserError: The name is incomplete, or the file cannot be had.
    """
    if not source.startswith(HUB):
        return source
    org, _, rest = source.removeprefix(HUB).partition("/")
    name, _, path = rest.partition("/")
    name, _, revision = name.partition("@")
    if not (org and name and path):
        raise UserError(f"{source!r} names no file of a data set: write hf://datasets/ORG/NAME/FILE.")
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(f"{org}/{name}", path, repo_type="dataset", revision=revision or None)
    except Exception as error:  # of the network, the Hub and the disk, in many classes
        why = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(f"{source!r} cannot be fetched ({why}): check name and network, or give a file.") from None
