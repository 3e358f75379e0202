// Estimates values from photos on iOS with $comment_model, through LiteRT. README.txt says how to build it in.

import TensorFlowLite
import UIKit

/// Holds the model in memory as long as it lives. Use it from one thread at a time, and not from the main one.
final class Estimator {
    private static let model = $swift_model
    private static let frame = CGSize(width: $width, height: $height)
    private static let names: [String] = [$swift_names]

    private let interpreter: Interpreter

    init() throws {
        guard let path = Bundle.main.path(forResource: Self.model, ofType: nil) else {
            throw CocoaError(.fileNoSuchFile, userInfo: [NSFilePathErrorKey: Self.model])
        }
        interpreter = try Interpreter(modelPath: path)
        try interpreter.allocateTensors()
    }

    /// Estimates all values, by name, each in its own unit.
    func estimate(_ photo: UIImage) throws -> [String: Float] {
        try interpreter.copy(pixels(of: fitted(photo)), toInputAt: 0)
        try interpreter.invoke()
        let values = try interpreter.output(at: 0).data.withUnsafeBytes { stored in
            stored.bindMemory(to: $swift_type.self).map { $swift_real }
        }
        return Dictionary(uniqueKeysWithValues: zip(Self.names, values))
    }

    /// Red, green and blue of each pixel, row by row, as the model takes them.
    private func pixels(of frame: UIImage) throws -> Data {
        let width = Int(Self.frame.width), height = Int(Self.frame.height)
        var bytes = [UInt8](repeating: 0, count: width * height * 4)
        let info = CGImageAlphaInfo.noneSkipLast.rawValue | CGBitmapInfo.byteOrder32Big.rawValue
        let drawn: Bool = bytes.withUnsafeMutableBytes { memory in
            guard let image = frame.cgImage, let space = CGColorSpace(name: CGColorSpace.sRGB),
                let context = CGContext(
                    data: memory.baseAddress, width: width, height: height, bitsPerComponent: 8,
                    bytesPerRow: 4 * width, space: space, bitmapInfo: info)
            else { return false }
            context.draw(image, in: CGRect(origin: .zero, size: Self.frame))
            return true
        }
        guard drawn else { throw CocoaError(.coderInvalidValue) }
        var data = Data()
        for (index, value) in bytes.enumerated() where index % 4 != 3 {
            $swift_put
        }
        return data
    }

$swift_fitted}
