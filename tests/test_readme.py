"""The README's code runs as printed."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

from edgetl.rundir import RunDir

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_ten_lines_of_numpy_classify_a_photo(finished_run: RunDir, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    Image.fromarray(load_sample_image("flower.jpg")).save(tmp_path / "photo.jpg")
    code = code.replace("runs/demo", str(finished_run.path.resolve()))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in finished_run.output_names


def test_commands_in_the_readme_exist() -> None:
    root = Path(__file__).parent.parent
    modules = re.findall(r"python -m ((?:recipes|export)\.\w+)", README)
    assert len(modules) >= 5
    assert all((root / f"{module.replace('.', '/')}.py").is_file() for module in modules)


def test_links_in_the_readme_lead_somewhere() -> None:
    root = Path(__file__).parent.parent
    assert all((root / link).is_file() for link in re.findall(r"\]\(([^):]+)\)", README))
