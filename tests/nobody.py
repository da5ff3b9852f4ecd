"""Reports on data sets as a user gets them who may not read all of their files; root may."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Each data set is looked at twice: first by whoever runs the tests, so that everything is imported
#: before the process gives up its rights, and with them perhaps those to the interpreter's files.
_CODE = """
import json, os, sys
from pathlib import Path
from mvhlib import profiles
from mvhlib.artifacts import InputError

def looked(data):
    os.chdir(data)  # the folders above may be closed as well
    try:
        return "\\n".join(profiles.look(Path(".")).lines())
    except InputError as error:
        return str(error)

places = [os.open(data, os.O_RDONLY) for data in sys.argv[1:]]
for place in places:
    looked(place)
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
print(json.dumps([looked(place) for place in places]))
"""


def close(path: Path) -> None:
    """Take everybody's rights off a file or folder."""
    path.chmod(0)


def looked_at(folders: Sequence[Path]) -> list[str]:
    """The report on each data set, or the error in its place."""
    for folder in folders:
        folder.chmod(0o755)
    made = subprocess.run([sys.executable, "-c", _CODE, *map(str, folders)], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout.splitlines()[-1])
