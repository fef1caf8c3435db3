"""Where the options of this package are."""

from pathlib import Path


def conf_dir() -> str:
    """Absolute path of the YAML folder: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return str(inside if (inside / "config.yaml").is_file() else package.parent / "conf")
