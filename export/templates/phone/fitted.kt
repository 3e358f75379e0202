    /** As in training: $rule */
    private fun fitted(photo: Bitmap, rotationDegrees: Int): Bitmap {
        val turn = Matrix().apply { setRotate(rotationDegrees.toFloat()) }
        var small = Bitmap.createBitmap(photo, 0, 0, photo.width, photo.height, turn, true)
        val across = WIDTH.toFloat() / small.width
        val down = HEIGHT.toFloat() / small.height
        val width = maxOf(1f, small.width * $kotlin_across)
        val height = maxOf(1f, small.height * $kotlin_down)
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
