"""The command line: parse, call, print. options.py makes options from fields of settings; app.py holds the verbs."""
