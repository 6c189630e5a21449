//go:build !race

package main

const raceCheck = false
