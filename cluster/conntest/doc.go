// Package conntest is for tests of what talks over a [cluster.Conn]: [Hub] is a bus in memory that can
// lose, double, delay and cut off, also in virtual time; [Exercise] is what every Conn must pass, the
// real one and this.
package conntest
