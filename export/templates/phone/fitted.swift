    /// Upright, then as in training: $rule
    private func fitted(_ photo: UIImage) -> UIImage {
        let across = Self.frame.width / photo.size.width
        let down = Self.frame.height / photo.size.height
        let width = photo.size.width * $swift_across
        let height = photo.size.height * $swift_down
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
