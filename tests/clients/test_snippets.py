"""What is written for phones is Kotlin and Swift."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import client

from edgetl.inputs import ImageInput, ResizeRule
from edgetl.outputs import OutputSpec, Task
from export import phone
from export.artifacts import Artifact

pytestmark = pytest.mark.clients

BITMAP = """
package android.graphics;
public final class Bitmap {
  public enum Config { ARGB_8888, HARDWARE }
  public int getWidth() { return 0; }
  public int getHeight() { return 0; }
  public void getPixels(int[] pixels, int offset, int stride, int x, int y, int width, int height) {}
  public static Bitmap createBitmap(int width, int height, Config config) { return null; }
  public static Bitmap createBitmap(Bitmap source, int x, int y, int width, int height, Matrix m, boolean filter) {
    return null;
  }
  public static Bitmap createScaledBitmap(Bitmap source, int width, int height, boolean filter) { return null; }
}
"""
CANVAS = """
package android.graphics;
public class Canvas {
  public Canvas(Bitmap bitmap) {}
  public void drawColor(int color) {}
  public void drawRect(RectF rect, Paint paint) {}
  public void drawBitmap(Bitmap bitmap, Rect source, RectF target, Paint paint) {}
}
"""
PAINT = """
package android.graphics;
public class Paint {
  public static final int FILTER_BITMAP_FLAG = 2;
  public Paint() {}
  public Paint(int flags) {}
  public int getColor() { return 0; }
  public void setColor(int color) {}
}
"""
CLASSIFIER = """
package com.google.mediapipe.tasks.vision.imageclassifier;
import android.content.Context;
import com.google.mediapipe.framework.image.MPImage;
import com.google.mediapipe.tasks.core.BaseOptions;
import com.google.mediapipe.tasks.vision.core.RunningMode;
public final class ImageClassifier implements AutoCloseable {
  public static ImageClassifier createFromOptions(Context context, ImageClassifierOptions options) { return null; }
  public ImageClassifierResult classify(MPImage image) { return null; }
  public void close() {}
  public abstract static class ImageClassifierOptions {
    public static Builder builder() { return null; }
    public abstract static class Builder {
      public abstract Builder setBaseOptions(BaseOptions options);
      public abstract Builder setRunningMode(RunningMode mode);
      public final ImageClassifierOptions build() { return null; }
    }
  }
}
"""
BASE_OPTIONS = """
package com.google.mediapipe.tasks.core;
public abstract class BaseOptions {
  public static Builder builder() { return null; }
  public abstract static class Builder {
    public abstract Builder setModelAssetPath(String path);
    public final BaseOptions build() { return null; }
  }
}
"""
INTERPRETER = """
package org.tensorflow.lite;
public final class Interpreter implements AutoCloseable {
  public Interpreter(java.nio.ByteBuffer model, Options options) {}
  public void run(Object input, Object output) {}
  public void close() {}
  public static class Options { public Options() {} }
}
"""
CONTAINERS = "com.google.mediapipe.tasks.components.containers"
STUBS = {
    "Bitmap": BITMAP,
    "Canvas": CANVAS,
    "Paint": PAINT,
    "ImageClassifier": CLASSIFIER,
    "BaseOptions": BASE_OPTIONS,
    "Context": "package android.content; public abstract class Context {"
    " public abstract android.content.res.AssetManager getAssets(); }",
    "AssetManager": "package android.content.res; public final class AssetManager {"
    " public java.io.InputStream open(String name) throws java.io.IOException { return null; } }",
    "Interpreter": INTERPRETER,
    "Color": "package android.graphics; public class Color { public static final int BLACK = 0, WHITE = 1; }",
    "Matrix": "package android.graphics; public class Matrix { public void setRotate(float degrees) {} }",
    "Rect": "package android.graphics; public class Rect {}",
    "RectF": "package android.graphics; public class RectF { public RectF(float l, float t, float r, float b) {} }",
    "MPImage": "package com.google.mediapipe.framework.image; public class MPImage {}",
    "BitmapImageBuilder": "package com.google.mediapipe.framework.image; public class BitmapImageBuilder {"
    " public BitmapImageBuilder(android.graphics.Bitmap bitmap) {} public MPImage build() { return null; } }",
    "RunningMode": "package com.google.mediapipe.tasks.vision.core; public enum RunningMode { IMAGE, VIDEO }",
    "Category": f"package {CONTAINERS}; public abstract class Category {{"
    " public abstract String categoryName(); public abstract float score(); }",
    "Classifications": f"package {CONTAINERS}; public abstract class Classifications {{"
    " public abstract java.util.List<Category> categories(); }",
    "ClassificationResult": f"package {CONTAINERS}; public abstract class ClassificationResult {{"
    " public abstract java.util.List<Classifications> classifications(); }",
    "ImageClassifierResult": "package com.google.mediapipe.tasks.vision.imageclassifier;"
    f" public abstract class ImageClassifierResult {{ public abstract {CONTAINERS}.ClassificationResult"
    " classificationResult(); }",
}
"""What the Kotlin code uses of Android, MediaPipe Tasks 1.0 and LiteRT 1.4, with its signatures: class name -> Java."""


ODD = ("plain", 'a "b" $d \\u00e9 é')
TASKS: dict[Task, OutputSpec] = {
    "classification": OutputSpec("classification", ODD),
    "multi_label": OutputSpec("multi_label", ODD, thresholds=(0.3, 0.5)),
    "regression": OutputSpec("regression", ODD, deviations=(1.0, 2.0)),
}


def written(
    folder: Path, rule: ResizeRule, name: str = "int8.tflite", task: Task = "classification", io: str = "uint8"
) -> Path:
    scale = 0.0 if io == "float32" else 1 / 256
    artifact = Artifact(
        scheme="int8",
        path=name,
        sha256="",
        size_bytes=1,
        inputs=ImageInput(96, 160, rule),
        input_type=io,
        input_scale=scale,
        input_zero_point=0,
        outputs=TASKS[task],
        output_type=io,
        output_scale=scale,
        output_zero_point=0,
        operators=1,
        run_sha256="",
        calibration=(),
        settings={},
        versions={},
    )
    phone.write(folder, artifact)
    return folder


@pytest.mark.parametrize("rule", phone.RULES)
@pytest.mark.parametrize("name", ["int8.tflite", 'a "b" \\(c) ${d} \\u00e9 é.tflite'])
@pytest.mark.parametrize(("task", "io"), [*((task, "uint8") for task in TASKS), ("regression", "float32")])
def test_snippets_parse(tmp_path: Path, rule: ResizeRule, name: str, task: Task, io: str) -> None:
    tree_sitter = client("tree_sitter")
    folder = written(tmp_path, rule, name, task, io)
    stem = "Estimator" if task == "regression" else "Classifier"
    for language, file in (("kotlin", f"{stem}.kt"), ("swift", f"{stem}.swift")):
        grammar = tree_sitter.Language(client(f"tree_sitter_{language}").language())
        text = (folder / file).read_bytes()
        root = tree_sitter.Parser(grammar).parse(text).root_node
        assert root.child_count > 3 and not root.has_error, f"{file}: {root}"
        unclosed = text.rstrip().removesuffix(b"}")
        assert tree_sitter.Parser(grammar).parse(unclosed).root_node.has_error  # the parser would have said so


@pytest.mark.skipif(not shutil.which("kotlinc"), reason="no Kotlin compiler here; apt-get install kotlin")
@pytest.mark.parametrize(
    ("task", "io"),
    [("multi_label", "uint8"), ("regression", "uint8"), ("regression", "int8"), ("regression", "float32")],
)
def test_kotlin_compiles_against_the_api_that_it_uses(tmp_path: Path, task: Task, io: str) -> None:
    folder = written(tmp_path, "crop", 'a "b" $d.tflite', task, io)
    stem = "Estimator" if task == "regression" else "Classifier"
    for name, text in STUBS.items():
        package = text.split()[1].rstrip(";")
        place = tmp_path / "java" / package.replace(".", "/")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.java").write_text(text)
    line = ["kotlinc", folder / f"{stem}.kt", tmp_path / "java", "-d", tmp_path / "classes"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert not done.returncode and (tmp_path / "classes" / f"{stem}.class").is_file(), done.stderr
    assert "error:" not in done.stderr
