"""`llmmesh evaluate`: the services' own decisions on labelled data of one's own."""
