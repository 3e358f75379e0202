// Scores photos on Android with int8.tflite, through MediaPipe Tasks. README.txt says how to build it in.

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Matrix
import android.graphics.Paint
import android.graphics.RectF
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.components.containers.Category
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.core.RunningMode
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier.ImageClassifierOptions

private const val MODEL = "int8.tflite"
private const val WIDTH = 32
private const val HEIGHT = 32

/** Holds the model in memory until it is closed. Use it from one thread at a time, and not from the main one. */
class Classifier(context: Context) : AutoCloseable {
    private val classifier = ImageClassifier.createFromOptions(
        context,
        ImageClassifierOptions.builder()
            .setBaseOptions(BaseOptions.builder().setModelAssetPath(MODEL).build())
            .setRunningMode(RunningMode.IMAGE)
            .build()
    )

    /**
     * Scores all classes, best first: categoryName(), and score() from 0 to 1.
     *
     * A Bitmap lies as it was stored. Pass the rotationDegrees of the file's ExifInterface or of the camera frame's
     * imageInfo. Hardware bitmaps can't be drawn: decode with BitmapFactory.
     */
    fun classify(photo: Bitmap, rotationDegrees: Int = 0): List<Category> {
        val image = BitmapImageBuilder(fitted(photo, rotationDegrees)).build()
        return classifier.classify(image).classificationResult().classifications().first().categories()
    }

    override fun close() = classifier.close()

    /** As in training: the whole photo, stretched to the frame. */
    private fun fitted(photo: Bitmap, rotationDegrees: Int): Bitmap {
        val turn = Matrix().apply { setRotate(rotationDegrees.toFloat()) }
        var small = Bitmap.createBitmap(photo, 0, 0, photo.width, photo.height, turn, true)
        val across = WIDTH.toFloat() / small.width
        val down = HEIGHT.toFloat() / small.height
        val width = maxOf(1f, small.width * across)
        val height = maxOf(1f, small.height * down)
        // The filter blends 2 x 2 pixels: halve large photos first, or it would skip most of theirs.
        while (small.width >= 2 * width || small.height >= 2 * height) {
            val nextWidth = if (small.width >= 2 * width) small.width / 2 else small.width
            val nextHeight = if (small.height >= 2 * height) small.height / 2 else small.height
            small = Bitmap.createScaledBitmap(small, nextWidth, nextHeight, true)
        }
        val left = (WIDTH - width) / 2
        val top = (HEIGHT - height) / 2
        val target = RectF(left, top, left + width, top + height)
        val frame = Bitmap.createBitmap(WIDTH, HEIGHT, Bitmap.Config.ARGB_8888)
        val canvas = Canvas(frame)
        canvas.drawColor(Color.BLACK)
        canvas.drawRect(target, Paint().apply { color = Color.WHITE }) // behind transparency
        canvas.drawBitmap(small, null, target, Paint(Paint.FILTER_BITMAP_FLAG))
        return frame
    }
}
