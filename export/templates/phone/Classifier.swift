// Scores photos on iOS with $comment_model, through MediaPipe Tasks. README.txt says how to build it in.

import MediaPipeTasksVision
import UIKit

/// Holds the model in memory as long as it lives. Use it from one thread at a time, and not from the main one.
final class Classifier {
    private static let model = $swift_model
    private static let frame = CGSize(width: $width, height: $height)
$swift_thresholds
    private let classifier: ImageClassifier

    init() throws {
        guard let path = Bundle.main.path(forResource: Self.model, ofType: nil) else {
            throw CocoaError(.fileNoSuchFile, userInfo: [NSFilePathErrorKey: Self.model])
        }
        let options = ImageClassifierOptions()
        options.baseOptions.modelAssetPath = path
        options.runningMode = .image
        classifier = try ImageClassifier(options: options)
    }

    /// Scores all $kinds, best first, from 0 to 1.
    func classify(_ photo: UIImage) throws -> [(name: String, score: Float)] {
        let result = try classifier.classify(image: MPImage(uiImage: fitted(photo)))
        let categories = result.classificationResult.classifications.first?.categories ?? []
        return categories.map { (name: $$0.categoryName ?? "", score: $$0.score) }
    }

$swift_labels$swift_fitted}
