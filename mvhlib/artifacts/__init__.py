"""Handling of files: errors that name them, atomic writing, hashes, locks.

A file under ``OUT`` either is whole or is not there: everything is written beside its place and
renamed. Nothing that depends on the clock, the host or the place of the clone goes into a file
whose bytes are compared.
"""

from mvhlib.artifacts.errors import InputError, TooFew, one_line, reading, where_enough
from mvhlib.artifacts.files import (
    OUTPUTS,
    atomic,
    check_file,
    is_output,
    lock,
    read_json,
    remove_tree,
    this_process,
    write_json,
    write_text,
)
from mvhlib.artifacts.h5 import (
    check_h5,
    check_h5_files,
    h5_array,
    h5_attr,
    h5_opened,
    h5_reader,
    h5_sizes,
    h5_writer,
    read_attr,
)
from mvhlib.artifacts.hashes import sha256_file, sha256_of
from mvhlib.artifacts.names import check_sayable, check_spelling, safe_name, safe_path
from mvhlib.artifacts.run_tables import FLOAT_FORMAT, read_csv, write_csv

__all__ = ["FLOAT_FORMAT", "InputError", "OUTPUTS", "TooFew", "atomic", "check_file", "check_h5",
           "check_h5_files", "check_sayable", "check_spelling", "h5_array", "h5_attr", "h5_opened",
           "h5_reader", "h5_sizes", "h5_writer", "is_output", "lock", "one_line", "read_attr",
           "read_csv", "read_json", "reading", "remove_tree", "safe_name", "safe_path",
           "sha256_file", "sha256_of", "this_process", "where_enough", "write_csv", "write_json",
           "write_text"]
