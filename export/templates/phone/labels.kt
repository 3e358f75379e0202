    /** The labels that reach their thresholds, best first; there may be none. */
    fun labels(photo: Bitmap, rotationDegrees: Int = 0): List<Category> =
        classify(photo, rotationDegrees).filter { it.score() >= THRESHOLDS.getValue(it.categoryName()) }

