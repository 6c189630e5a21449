// Package repotest holds the rules of this repository that a machine can check, as ordinary tests: that the documents
// tell the truth about the tree, and that the tree keeps the rules of CONTRIBUTING.md. It contains no code of its own;
// the import line is depguard's, in .golangci.yml.
package repotest
