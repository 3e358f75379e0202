// Estimates values from photos on Android with $comment_model, through LiteRT. README.txt says how to build it in.

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Matrix
import android.graphics.Paint
import android.graphics.RectF
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.Interpreter

private const val MODEL = $kotlin_model
private const val WIDTH = $width
private const val HEIGHT = $height
private val NAMES = listOf($kotlin_names)

/** Holds the model in memory until it is closed. Use it from one thread at a time, and not from the main one. */
class Estimator(context: Context) : AutoCloseable {
    private val interpreter = Interpreter(direct(context.assets.open(MODEL).use { it.readBytes() }), Interpreter.Options())
    private val input = direct(ByteArray(WIDTH * HEIGHT * 3 * $input_bytes))
    private val output = direct(ByteArray(NAMES.size * $output_bytes))

    /**
     * Estimates all values, by name, each in its own unit.
     *
     * A Bitmap lies as it was stored. Pass the rotationDegrees of the file's ExifInterface or of the camera frame's
     * imageInfo. Hardware bitmaps can't be drawn: decode with BitmapFactory.
     */
    fun estimate(photo: Bitmap, rotationDegrees: Int = 0): Map<String, Float> {
        val pixels = IntArray(WIDTH * HEIGHT)
        fitted(photo, rotationDegrees).getPixels(pixels, 0, WIDTH, 0, 0, WIDTH, HEIGHT)
        input.rewind()
        for (pixel in pixels) for (shift in intArrayOf(16, 8, 0)) {
            val value = pixel shr shift and 0xff
            $kotlin_put
        }
        input.rewind()
        output.rewind()
        interpreter.run(input, output)
        output.rewind()
        return NAMES.associateWith { $kotlin_real }
    }

    override fun close() = interpreter.close()

    private fun direct(content: ByteArray): ByteBuffer {
        val buffer = ByteBuffer.allocateDirect(content.size).order(ByteOrder.nativeOrder())
        buffer.put(content)
        buffer.rewind()
        return buffer
    }

$kotlin_fitted}
