// Scores photos on iOS with int8.tflite, through MediaPipe Tasks. README.txt says how to build it in.

import MediaPipeTasksVision
import UIKit

/// Holds the model in memory as long as it lives. Use it from one thread at a time, and not from the main one.
final class Classifier {
    private static let model = "int8.tflite"
    private static let frame = CGSize(width: 32, height: 32)

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

    /// Scores all classes, best first, from 0 to 1.
    func classify(_ photo: UIImage) throws -> [(name: String, score: Float)] {
        let result = try classifier.classify(image: MPImage(uiImage: fitted(photo)))
        let categories = result.classificationResult.classifications.first?.categories ?? []
        return categories.map { (name: $0.categoryName ?? "", score: $0.score) }
    }

    /// Upright, then as in training: the whole photo, stretched to the frame.
    private func fitted(_ photo: UIImage) -> UIImage {
        let across = Self.frame.width / photo.size.width
        let down = Self.frame.height / photo.size.height
        let width = photo.size.width * across
        let height = photo.size.height * down
        let left = (Self.frame.width - width) / 2
        let top = (Self.frame.height - height) / 2
        let target = CGRect(x: left, y: top, width: width, height: height)
        let format = UIGraphicsImageRendererFormat()
        format.scale = 1  // the frame is in pixels, not in points
        format.preferredRange = .standard
        return UIGraphicsImageRenderer(size: Self.frame, format: format).image { context in
            UIColor.black.setFill()
            context.fill(CGRect(origin: .zero, size: Self.frame))
            UIColor.white.setFill()  // behind transparency
            context.fill(target)
            context.cgContext.interpolationQuality = .high
            photo.draw(in: target)
        }
    }
}
