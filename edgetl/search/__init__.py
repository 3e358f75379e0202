"""Search for better settings: the space, and a study by Optuna that a killed process resumes to the same trials."""
