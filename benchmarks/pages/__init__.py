"""The measured parts of the documentation, each a text made from files in `benchmarks/results`.

Every part is a function `part(results, link)`: the folder of the result files, and the path from the
page to that folder, for links and pictures. `benchmarks/readme.py` says which part goes to which page.
"""
