"""What a wheel and a source distribution hold: check_distribution.py FOLDER

The package, its films and what packaging needs; no other data, no notebook, nothing else."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = r"dallmi/([\w/]+\.(py|html|css|js)|py\.typed|films/(source|target)\w*\.csv)"
WHEEL = [PACKAGE, r"dallmi-[\w.]+\.dist-info/.+"]
SOURCE = [
    PACKAGE,
    r"(settings\.ini|setup\.(py|cfg)|README\.md|LICENSE|CHANGELOG\.md|CITATION\.cff|MANIFEST\.in|PKG-INFO)",
    r"dallmi\.egg-info/.+",
]


def problems(path: Path) -> list[str]:
    "What is in the archive at `path` and should not be, or is missing, a line each."
    if path.suffix == ".whl":
        names, known = zipfile.ZipFile(path).namelist(), WHEEL
    else:
        with tarfile.open(path) as archive:
            names = [m.name.partition("/")[2] for m in archive if m.isfile()]
        known = [*SOURCE]
    found = [
        f"{path.name}: {name} should not be in it"
        for name in names
        if not any(re.fullmatch(pattern, name) for pattern in known)
    ]
    if sum(name.startswith("dallmi/films/") for name in names) < 2:
        found.append(f"{path.name}: the films are missing")
    return found


if __name__ == "__main__":
    archives = sorted(p for p in Path(sys.argv[1]).iterdir() if p.suffix in (".whl", ".gz"))
    wrong = [line for path in archives for line in problems(path)]
    print("\n".join(wrong) or f"{len(archives)} archives hold what they should")
    sys.exit(bool(wrong) or len(archives) < 2)
