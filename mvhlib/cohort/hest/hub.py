"""Download of samples from the hub where HEST is published."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mvhlib.artifacts import InputError

#: Repositories on the hub.
HUB = {"hest": "MahmoodLab/hest", "hest-bench": "MahmoodLab/hest-bench"}


def fetch(path: str | Path, sections: Iterable[str], *, repository: str = "hest",
          parts: Sequence[str] = ("st", "patches", "metadata"),
          revision: str | None = None) -> Path:
    """Download samples from the hub. Nothing else here uses the network.

    The data are gated: accept their terms on the hub's page and log in
    (``huggingface-cli login``) first. Patches of a section take some hundred MB, its slide GB.

    Parameters
    ----------
    path
        Folder to fill.
    sections
        Ids.
    repository
        ``"hest"``, ``"hest-bench"``, or the full name of another repository of data sets.
    parts
        Folders to fetch: st, patches, metadata, wsis, ...; for hest-bench adata and patches, and
        the tasks' splits and gene lists come with them.
    revision
        Commit or tag; None takes the newest. Name one for numbers that shall be made again.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    InputError
        If ``huggingface_hub`` is not installed, nothing is asked for, or the hub refuses.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError("hest.fetch", "huggingface_hub", "is not installed",
                         "pip install huggingface_hub, or copy the files by other means") from error
    sections = list(sections)
    if not sections or not parts:
        raise InputError("hest.fetch", "sections", "or parts are empty", "name what to fetch")
    bench = repository == "hest-bench"
    ahead = "*/" if bench else ""
    wanted = [f"{ahead}{part}/{name}{end}" for name in sections for part in parts
              for end in (".*", "_*")]
    # In hest-bench every file lies below its task.
    wanted += ["*/splits/*.csv", "*/*_50genes.json"] if bench else ["HEST_v*.csv"]
    try:
        snapshot_download(repo_id=HUB.get(repository, repository), repo_type="dataset",
                          revision=revision, allow_patterns=wanted, local_dir=str(path))
    except Exception as error:  # the client's errors are many and change their names
        raise InputError(HUB.get(repository, repository), "download",
                         f"failed ({type(error).__name__}: {error})",
                         "accept the terms on the hub's page, log in, and check the connection"
                         ) from error
    return Path(path)
