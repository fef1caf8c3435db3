#!/usr/bin/env bash
# Builds a source distribution and from it a wheel, checks their metadata, installs the wheel into an environment without
# the checkout and uses it from another folder: conf/ must be inside. Its dependencies are those of the environment of the
# argument, which are seen through a .pth file.
# Argument: the Python of an environment that has the dependencies, `build` and `twine`.
set -euo pipefail
python=$(realpath -s "$1")
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Only what git tracks goes in: a stray file of the checkout must not make it work.
mkdir "$work/source" "$work/elsewhere"
git -C "$checkout" archive --format=tar HEAD | tar -x -C "$work/source"
"$python" -m build --outdir "$work/dist" "$work/source"
"$python" -m twine check --strict "$work"/dist/*

"$python" -m venv "$work/venv"
site='import site; print(site.getsitepackages()[0])'
"$python" -c "$site" > "$("$work/venv/bin/python" -c "$site")/beneath.pth"
"$work/venv/bin/python" -m pip install --quiet --constraint "$checkout/constraints.txt" "$work"/dist/pspexp-*.whl

cd "$work/elsewhere"
"$work/venv/bin/python" - "$work/venv" <<'EOF'
import pathlib
import sys
from importlib.metadata import distribution

import pspexp

found = distribution("pspexp")
assert found.version == pspexp.__version__, found.version
assert "Apache" in (found.read_text("licenses/LICENSE") or ""), "no licence"
assert {"export", "lite", "smp"} <= set(found.metadata.get_all("Provides-Extra")), found.metadata
assert (pathlib.Path(pspexp.__file__).parent / "py.typed").is_file(), "no py.typed"

assert pspexp.__file__.startswith(sys.argv[1]), pspexp.__file__
page = pathlib.Path(pspexp.__file__).parent / "jobs" / "compare" / "page.html"
assert page.is_file(), page
classes = pspexp.compose(["experiment=quickstart"]).dataset.class_names
assert pspexp.compose(["experiment=quickstart", "+sweep=lr_batch"]).loader.batch_size == 4
print(f"installed in {pspexp.__file__}; quickstart has {len(classes)} classes")
EOF
"$work/venv/bin/pspexp" experiment=quickstart trainer.max_steps=2 loader.max_eval_images=2
test -f outputs/quickstart/*/checkpoints/best.pt
"$work/venv/bin/pspexp" mode=init init.output=my_project
test -f my_project/.gitignore -a -f my_project/my_model.py -a -f my_project/conf/experiment/my_experiment.yaml
echo "The wheel works from another folder."
