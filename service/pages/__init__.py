"""The web pages: made by the server from templates, for people with a browser, with and without JavaScript.

Each module has the routes of one part of the site; `site` has what all of them share.
"""
