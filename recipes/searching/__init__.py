"""What `recipes.search` is made of: trials, the int8 shapes of networks, the loop over trials, and what came of it."""
