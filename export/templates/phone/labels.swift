    /// The labels that reach their thresholds, best first; there may be none.
    func labels(_ photo: UIImage) throws -> [(name: String, score: Float)] {
        try classify(photo).filter { $$0.score >= Self.thresholds[$$0.name] ?? .infinity }
    }

