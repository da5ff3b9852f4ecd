"""Feature matrices of 10x Genomics: counts, barcodes and genes, from h5 or Matrix Market.

Everything that a file says about its own layout is checked before scipy sees it: a wrong pointer
there would end the process, not the reading.
"""

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mvhlib.artifacts import InputError, check_file, h5_array, h5_reader, one_line, reading

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix

#: Features that are genes, in the column that says what was captured.
GENE = "Gene Expression"
_COPY = "it is probably truncated: copy it again from its source"
_ENSEMBL = re.compile(r"ENS[A-Z]{0,6}G\d{6,}(\.\d+)?")
_VERSION = re.compile(r"(?<=\d)\.\d+$")
#: Columns of a features table that hold symbols where its names are Ensembl ids.
_SYMBOL_COLUMNS = ("gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol")
_CHUNK = 1 << 20


def read_features(path: Path) -> pd.DataFrame:
    """Read the list of features, without the counts.

    Returns
    -------
    DataFrame
        One row per feature, in the file's order: ``name`` (a symbol where the file has symbols),
        ``gene_ids``, and what else the file says (``feature_types``, ``genome``). Where the two
        columns are swapped, or symbols stand in a column of their own, they are put right.

    Raises
    ------
    InputError
        If the table is missing, broken or ragged, or a name is blank.
    """
    if path.is_dir():
        return _mtx_features(path)
    with h5_reader(path) as stream:
        group, is_v3 = _h5_group(stream, path)
        return _h5_features(group, is_v3, path)


def read_matrix(path: Path, names: "GeneNames | None" = None) -> "AnnData":
    """Read the counts of genes; other features, such as antibodies, are left out.

    Parameters
    ----------
    path
        ``*_feature_bc_matrix.h5`` or the folder of the same name.
    names
        How genes are called over a whole cohort; None names them by this file alone.

    Returns
    -------
    AnnData
        Barcodes x genes, ``layers["counts"]`` int32 and ``X`` the same; ``var["gene_ids"]``.

    Raises
    ------
    InputError
        If a part is missing or broken, the parts do not fit one another, a barcode is blank or
        doubled, or values are no counts.
    """
    from anndata import AnnData

    features = read_features(path)
    if path.is_dir():
        barcodes, counts, obs = _mtx_counts(path, len(features))
    else:
        barcodes, counts, obs = _h5_counts(path, len(features))
    genes = _is_gene(features, path)
    if not genes.any():
        kinds = sorted(set(features["feature_types"]))[:5]
        raise InputError(path, "feature_types", f"holds no {GENE!r}, only {kinds}",
                         "give the matrix of gene expression")
    names = names or GeneNames([path])
    var = features[genes].drop(columns="name")
    var.index = without_versions(pd.Index(names.of(features[genes], path)))
    adata = AnnData(obs=pd.DataFrame(obs, index=pd.Index(barcodes)), var=var)
    adata.layers["counts"] = counts if genes.all() else counts[:, np.flatnonzero(genes)]
    adata.X = adata.layers["counts"].copy()
    return adata


class GeneNames:
    """One name for each gene of a cohort, though some symbols stand for several genes.

    Where a file lists a symbol twice, the genes behind it are told apart by their Ensembl ids: the
    lowest id over all files keeps the symbol, the next are ``SYMBOL-1``, ``SYMBOL-2``. So a name is
    one gene in every section, whatever the order in each file.

    Parameters
    ----------
    paths
        Feature matrices of the cohort. They are opened at the first question; until then a reader
        may add to `paths` those of the sections that it makes.
    """

    def __init__(self, paths: Iterable[Path]):
        self.paths = list(paths)

    def of(self, features: pd.DataFrame, path: Path) -> list[str]:
        """Names of the rows of `features` (as `read_features` gives them)."""
        ids = [_VERSION.sub("", gene) for gene in features["gene_ids"]]
        twice = [pair for pair, n in Counter(zip(features["name"], ids, strict=True)).items()
                 if n > 1]
        if twice:
            raise InputError(path, "gene", f"{twice[0][0]!r} stands more than once with the id "
                             f"{twice[0][1]!r}", "give every gene its own Ensembl id")
        return [self._shared.get(pair, pair[0])
                for pair in zip(features["name"], ids, strict=True)]

    @cached_property
    def _shared(self) -> dict[tuple[str, str], str]:
        """(symbol, id) -> name, for symbols that some file lists twice."""
        ids_of: dict[str, set[str]] = {}
        doubled: set[str] = set()
        for path in self.paths:
            features = read_features(path)
            features = features[_is_gene(features, path)]
            doubled |= set(features["name"][features["name"].duplicated()])
            for name, gene in zip(features["name"], features["gene_ids"], strict=True):
                ids_of.setdefault(name, set()).add(_VERSION.sub("", gene))
        named, taken = {}, set(ids_of)
        for symbol in sorted(doubled):
            number = 0
            for rank, gene in enumerate(sorted(ids_of[symbol])):
                name = symbol
                while rank and name in taken:
                    number += 1
                    name = f"{symbol}-{number}"
                taken.add(name)
                named[symbol, gene] = name
        return named


def told_apart(symbols: pd.Index, ids: pd.Series | None) -> pd.Index:
    """Add suffixes to a repeated symbol; the gene of the lowest Ensembl id keeps it plain.

    Without ids the order of the file decides.
    """
    from anndata.utils import make_index_unique

    if symbols.is_unique or ids is None or ids.isna().any():
        return make_index_unique(symbols)
    order = np.argsort(ids.astype(str).to_numpy(), kind="stable")
    names = np.empty(len(symbols), dtype=object)
    names[order] = make_index_unique(symbols[order])
    return pd.Index(names)


def without_versions(names: pd.Index) -> pd.Index:
    """``ENSG00000000003`` of ``ENSG00000000003.14``, where nearly all names are such ids.

    Names stay as they are where two would become one.
    """
    ids = [bool(_ENSEMBL.fullmatch(name)) for name in names.astype(str)]
    if not ids or np.mean(ids) < 0.9:
        return names
    short = pd.Index([_VERSION.sub("", name) if is_id else name
                      for name, is_id in zip(names.astype(str), ids, strict=True)])
    return short if short.is_unique else names


def _is_gene(features: pd.DataFrame, path: Path) -> np.ndarray:
    if "feature_types" not in features:
        return np.ones(len(features), dtype=bool)
    return (features["feature_types"] == GENE).to_numpy()


def _check_barcodes(barcodes: Sequence[str], path: Path) -> None:
    _check_printed(barcodes, path, "barcode", "give every spot its barcode")
    twice = [barcode for barcode, n in Counter(barcodes).items() if n > 1]
    if twice:
        raise InputError(path, "barcode", f"stands more than once, for example {twice[:3]}",
                         "make the names unique or sum the rows")


def _check_printed(names: Iterable[str], path: Path, field: str, fix: str) -> None:
    """Refuse names that are blank or contain unprintable characters, such as a line break."""
    for row, name in enumerate(names, 1):
        if not name:
            raise InputError(path, field, f"is blank in row {row}", fix)
        if not name.isprintable():
            raise InputError(path, field, f"is {name!r} in row {row}, not a name", fix)


def _symbols_first(features: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Put symbols into ``name`` where the file has them elsewhere, and refuse blank names."""
    def share(column: str) -> float:
        return np.mean([bool(_ENSEMBL.fullmatch(value)) for value in features[column]])

    if len(features) and share("name") > 0.9:
        beside = next((column for column in _SYMBOL_COLUMNS if column in features), None)
        if share("gene_ids") < 0.1:
            features = features.assign(name=features["gene_ids"], gene_ids=features["name"])
        elif beside is not None:
            features = features.assign(name=features[beside])
    for column in ("name", "gene_ids"):
        _check_printed(features[column], path, f"features: {column}",
                       "give every gene its name and id")
    return features


# --- counts -------------------------------------------------------------------------------------

def _whole(values: np.ndarray, path: Path, field: str) -> np.ndarray:
    """Whole numbers as int64 (or their own smaller type), whatever type the file stores."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or (values != np.floor(values)).any():
            raise InputError(path, field, "holds fractions or NaN", "store whole numbers there")
        if len(values) and np.abs(values).max() > 2.0**53:
            raise InputError(path, field, f"reaches {np.abs(values).max():g}", _COPY)
    elif values.dtype.kind == "u" and values.dtype.itemsize == 8 and len(values) \
            and values.max() > np.iinfo(np.int64).max:
        raise InputError(path, field, f"reaches {values.max()}", _COPY)
    return values if values.dtype in (np.int32, np.int64) else values.astype(np.int64)


def _counts(values: np.ndarray, path: Path) -> np.ndarray:
    """Return counts as int32; refuse negative, fractional and too large values."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InputError(path, "counts", "hold NaN or infinity", "store the raw counts")
        if (values != np.round(values)).any():
            raise InputError(path, "counts", "are fractional",
                             "store raw counts, not normalised values")
    if len(values) and values.min() < 0:
        raise InputError(path, "counts", f"are negative (least {values.min():g})",
                         "store raw counts, not scaled or corrected values")
    if len(values) and values.max() > np.iinfo(np.int32).max:
        raise InputError(path, "counts", f"reach {values.max():g}, more than any spot holds",
                         "store raw counts; " + _COPY)
    return values.astype(np.int32)


def _csr(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int],
         path: Path) -> "csr_matrix":
    """Barcodes x features from the arrays of an h5 file, each checked against the others."""
    from scipy.sparse import csr_matrix

    def wrong(field: str, problem: str) -> InputError:
        return InputError(path, f"matrix/{field}", problem, _COPY)

    n_barcodes, n_features = shape
    if len(data) != len(indices):
        raise wrong("indices", f"are {len(indices)} for {len(data)} values")
    if len(indptr) != n_barcodes + 1:
        raise wrong("indptr", f"has {len(indptr)} entries for {n_barcodes} barcodes")
    if indptr[0] != 0 or indptr[-1] != len(data) or (np.diff(indptr) < 0).any():
        raise wrong("indptr", f"does not rise from 0 to {len(data)}, the number of values")
    if len(indices) and not (indices.min() >= 0 and indices.max() < n_features):
        raise wrong("indices", f"reach from {indices.min()} to {indices.max()}, with "
                    f"{n_features} features")
    # Within a barcode each feature stands once; files are sorted, so the long way is rare.
    begins = np.zeros(len(indices) + 1, dtype=bool)
    begins[indptr] = True
    if ((np.diff(indices) <= 0) & ~begins[1:len(indices)]).any():
        row = np.repeat(np.arange(n_barcodes), np.diff(indptr))
        order = np.lexsort((indices, row))
        if ((np.diff(indices[order]) == 0) & (np.diff(row[order]) == 0)).any():
            raise wrong("indices", "name a feature twice within one barcode")
    return csr_matrix((data, indices, indptr), shape=shape)


# --- h5 -----------------------------------------------------------------------------------------

def _h5_group(stream: Any, path: Path) -> tuple[Any, bool]:
    """The group that holds the matrix, and whether its layout is Cell Ranger 3 and later."""
    import h5py

    if isinstance(stream.get("matrix"), h5py.Group):
        return stream["matrix"], True
    genomes = [name for name in stream
               if isinstance(stream[name], h5py.Group) and "gene_names" in stream[name]]
    if len(genomes) == 1:
        return stream[genomes[0]], False
    if genomes:
        raise InputError(path, "genome", f"there are several: {genomes}",
                         "give a file of one genome")
    raise InputError(path, "matrix", f"is missing; here are {sorted(stream)[:8]}",
                     "give the feature matrix of Space Ranger")


def _h5_text(group: Any, name: str, rows: int | None = None) -> list[str]:
    return [value.strip() for value in h5_array(group, name, kind="text", ndim=1, rows=rows)]


def _h5_features(group: Any, is_v3: bool, path: Path) -> pd.DataFrame:
    import h5py

    if not is_v3:
        symbols = _h5_text(group, "gene_names")
        return _symbols_first(pd.DataFrame(
            {"name": symbols, "gene_ids": _h5_text(group, "genes", len(symbols))},
            dtype=object), path)
    parts = group.get("features")
    if not isinstance(parts, h5py.Group):
        raise InputError(path, "matrix/features", "is missing",
                         "give the feature matrix of Space Ranger")
    symbols = _h5_text(parts, "name")
    of_probes = "gene_id" in parts
    columns: dict[str, Any] = {
        "name": symbols, "gene_ids": _h5_text(parts, "gene_id" if of_probes else "id",
                                              len(symbols))}
    if of_probes:
        columns["probe_ids"] = _h5_text(parts, "id", len(symbols))
    columns["feature_types"] = _h5_text(parts, "feature_type", len(symbols))
    for name, node in parts.items():
        if name in ("name", "id", "gene_id", "feature_type", "_all_tag_keys"):
            continue
        if isinstance(node, h5py.Dataset) and node.shape == (len(symbols),):
            if h5py.check_string_dtype(node.dtype) is not None:
                columns[name] = _h5_text(parts, name)
            else:
                values = h5_array(parts, name, ndim=1, finite=False)
                columns[name] = values if values.dtype.kind == "b" else values.astype(str)
    frame = pd.DataFrame(columns)
    return _symbols_first(frame, path)


def _h5_counts(path: Path, n_features: int) -> tuple[list[str], "csr_matrix", dict[str, Any]]:
    with h5_reader(path) as stream:
        group, _ = _h5_group(stream, path)
        barcodes = _h5_text(group, "barcodes")
        _check_barcodes(barcodes, path)
        shape = tuple(_whole(h5_array(group, "shape", ndim=1), path, "matrix/shape").tolist())
        if shape != (n_features, len(barcodes)):
            turned = shape == (len(barcodes), n_features)
            raise InputError(
                path, "matrix/shape", f"is {shape} for {n_features} features and {len(barcodes)} "
                "barcodes", "store features x barcodes, by columns" if turned else _COPY)
        indptr = _whole(h5_array(group, "indptr", ndim=1, rows=len(barcodes) + 1), path,
                        "matrix/indptr")
        data = _counts(h5_array(group, "data", ndim=1, finite=False), path)
        indices = _whole(h5_array(group, "indices", ndim=1, rows=len(data)), path,
                         "matrix/indices")
        obs = {}
        if "filtered_barcodes" in group:
            obs["filtered_barcodes"] = h5_array(group, "filtered_barcodes", ndim=1,
                                                rows=len(barcodes)).astype(bool)
    return barcodes, _csr(data, indices, indptr, (len(barcodes), n_features), path), obs


# --- Matrix Market ------------------------------------------------------------------------------

def _part(folder: Path, *names: str) -> Path:
    """A file of the folder, packed or plain."""
    for name in names:
        for path in (folder / f"{name}.gz", folder / name):
            if path.exists() or path.is_symlink():
                return check_file(path)
    raise InputError(folder, names[0], "is missing",
                     f"copy the folder as a whole: matrix.mtx, features.tsv and barcodes.tsv, "
                     f"gzipped or not; it holds {sorted(p.name for p in folder.iterdir())[:6]}")


def open_packed(path: Path) -> IO[bytes]:
    """Open a file that is gzipped or plain, whatever its name says."""
    with open(path, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else open(path, "rb")


def read_lines(path: Path) -> list[str]:
    """Lines of a small text file, gzipped or plain, without the blank ones at its end."""
    with reading(path, fix=_COPY), open_packed(path) as stream:
        lines = stream.read().decode("utf-8-sig").splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _cells(line: str) -> list[str]:
    """Cells of a line of a tsv file; R writes them in quotes."""
    return [cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
            for cell in (part.strip() for part in line.split("\t"))]


def _mtx_features(folder: Path) -> pd.DataFrame:
    path = _part(folder, "features.tsv", "genes.tsv")
    rows = [_cells(line) for line in read_lines(path)]
    if not rows:
        raise InputError(path, "rows", "are none", "copy it again from its source")
    width = len(rows[0])
    ragged = next((at for at, row in enumerate(rows) if len(row) != width), None)
    if ragged is not None:
        raise InputError(path, f"row {ragged + 1}", f"has {len(rows[ragged])} cells where the "
                         f"first has {width}", _COPY)
    columns = list(zip(*rows, strict=True))
    frame = pd.DataFrame({"name": columns[min(1, width - 1)], "gene_ids": columns[0]},
                         dtype=object)
    if width > 2 and path.name.startswith("features"):
        frame["feature_types"] = list(columns[2])
    return _symbols_first(frame, path)


def _mtx_counts(folder: Path, n_features: int) -> tuple[list[str], "csr_matrix", dict[str, Any]]:
    import scipy.io

    path = _part(folder, "matrix.mtx")
    listed = _part(folder, "barcodes.tsv")
    barcodes = [_cells(line)[0] for line in read_lines(listed)]
    _check_barcodes(barcodes, listed)
    shape, n_values = _mtx_header(path)
    if shape != (n_features, len(barcodes)):
        turned = shape == (len(barcodes), n_features)
        raise InputError(
            path, "matrix", f"is {shape[0]} x {shape[1]} for {n_features} features and "
            f"{len(barcodes)} barcodes", "write features x barcodes: transpose it" if turned
            else "give the three files of one matrix, complete and without headers")
    with reading(path, "matrix", fix=_COPY), open_packed(path) as stream:
        matrix = scipy.io.mmread(stream)
    matrix.data = _counts(matrix.data, path)
    counts = matrix.T.tocsr()
    counts.sort_indices()
    if counts.nnz < n_values:
        raise InputError(path, "matrix", "names a gene twice within one barcode", _COPY)
    return barcodes, counts, {}


def _mtx_header(path: Path) -> tuple[tuple[int, int], int]:
    """Shape and number of values; the file must hold as many lines, before memory is asked for."""
    with reading(path, fix=_COPY), open_packed(path) as stream:
        first = stream.readline(_CHUNK).decode("utf-8", "replace").lower().split()
        if first[:3] != ["%%matrixmarket", "matrix", "coordinate"] or len(first) != 5 or \
                first[3] not in ("integer", "real", "unsigned-integer") or first[4] != "general":
            raise InputError(path, "header", f"is {one_line(' '.join(first), 80)!r}",
                             "write '%%MatrixMarket matrix coordinate integer general'")
        line = stream.readline(_CHUNK)
        while line.startswith(b"%") or (line and not line.strip()):
            line = stream.readline(_CHUNK)
        size = line.split()
        if len(size) != 3 or not all(part.isdigit() for part in size):
            raise InputError(path, "size", f"is {one_line(line.decode('utf-8', 'replace'), 60)!r}",
                             "write the numbers of features, barcodes and values")
        n_rows, n_columns, n_values = map(int, size)
        lines, last = 0, b"\n"
        while chunk := stream.read(_CHUNK):
            lines, last = lines + chunk.count(b"\n"), chunk[-1:]
        lines += last != b"\n"
    if lines < n_values:
        raise InputError(path, "matrix", f"declares {n_values} values and holds {lines}", _COPY)
    return (n_rows, n_columns), n_values
