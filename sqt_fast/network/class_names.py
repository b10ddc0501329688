"""The class names that come with the program, and reading a user's own: one a line, by number, from 0."""

from pathlib import Path

from sqt_fast.errors import ConfigError

LABELS_FOLDER = Path(__file__).parents[1] / "labels"
# name of a bundled list -> number of classes; no two have the same, so a checkpoint's count tells its list
LABEL_LISTS = {
    "hmdb51": 51,
    "jester": 27,
    "kinetics400": 400,
    "kinetics600": 600,
    "kinetics700": 700,
    "sthv2": 174,
    "ucf101": 101,
}


def _lines_of(path: Path, shown: str) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"labels {shown}: cannot be read as text ({error}); give one class name a line") from None
    names = tuple(line.strip() for line in lines)
    if "" in names:
        raise ConfigError(f"labels {shown}: line {names.index('') + 1} is empty; give one class name a line")
    return names


def read_labels(labels: str | Path) -> tuple[str, ...]:
    """Return the class names of a bundled list or of a file with one a line, in order of the class numbers.

    Raises ConfigError.
    """
    if str(labels) in LABEL_LISTS:
        return _lines_of(LABELS_FOLDER / f"{labels}.txt", str(labels))
    if not Path(labels).is_file():
        raise ConfigError(f"labels {labels}: neither a file nor one of the lists {', '.join(LABEL_LISTS)}")
    return _lines_of(Path(labels), str(labels))
