"""Looks at the files of a data set before anything is trained on them: facts, their cache, findings and advice."""
