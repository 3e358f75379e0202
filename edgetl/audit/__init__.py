"""What is wrong with a data set, found before anything is learned from it.

`looks` reads every photo once; all other modules work on the few numbers per photo that it leaves, or on stored
features: `quality` (dark, blurry, odd), `copies` (exact and near), `labels` (probably wrong), `shift` (train against
test). `findings` says what they found, `page` shows it, `exclusion` takes the user's answer back, and `gate` is the
cheap part that every recipe runs. Importing costs numpy and Pillow.
"""
