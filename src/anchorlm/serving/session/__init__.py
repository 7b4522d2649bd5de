"""One request on its way: the guard as clients see it, the run on the engines' thread, the answer."""
