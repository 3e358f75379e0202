// Scores photos on Android with $comment_model, through MediaPipe Tasks. README.txt says how to build it in.

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

private const val MODEL = $kotlin_model
private const val WIDTH = $width
private const val HEIGHT = $height
$kotlin_thresholds
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
     * Scores all $kinds, best first: categoryName(), and score() from 0 to 1.
     *
     * A Bitmap lies as it was stored. Pass the rotationDegrees of the file's ExifInterface or of the camera frame's
     * imageInfo. Hardware bitmaps can't be drawn: decode with BitmapFactory.
     */
    fun classify(photo: Bitmap, rotationDegrees: Int = 0): List<Category> {
        val image = BitmapImageBuilder(fitted(photo, rotationDegrees)).build()
        return classifier.classify(image).classificationResult().classifications().first().categories()
    }

$kotlin_labels    override fun close() = classifier.close()

$kotlin_fitted}
