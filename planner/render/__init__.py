"""Plans for people: text, SVG and HTML, made by pure functions from a `Plan` alone."""
